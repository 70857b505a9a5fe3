"""Sound and pictures: files in, arrays out, and back."""
