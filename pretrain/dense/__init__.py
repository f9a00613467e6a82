"""Networks that see whole images, with a learned token in the features of what is hidden."""
