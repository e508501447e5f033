"""The miniature world: problems of additions in a row, and a small policy warmed up for them."""
