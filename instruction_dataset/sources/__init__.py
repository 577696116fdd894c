"""One module per source dataset, each turning it into instruction records."""
