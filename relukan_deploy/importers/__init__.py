"""Networks trained with other libraries: one file each, from its state dict to a network here."""
