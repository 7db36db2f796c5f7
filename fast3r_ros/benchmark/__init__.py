"""What `fast3r benchmark` measures, one module per benchmark."""
