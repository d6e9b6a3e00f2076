"""Networks in files: one module for each library, this one included, from its state dict to a network here."""
