"""Public datasets turned into instruction records: the record format, the sources, and the commands that write them."""
