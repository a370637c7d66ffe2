"""One image: decoding, and boxes in it."""
