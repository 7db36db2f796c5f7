"""The measurements of `fast3r benchmark`, one module per benchmark."""
