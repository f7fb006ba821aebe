"""What edits do to the elements of a tensor, on their bits. To be read in this order: floats, edits, excess."""
