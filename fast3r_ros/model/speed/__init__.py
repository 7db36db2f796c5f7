"""Speed-ups next to the network: they swap its steps or layers; the network does not know them."""
