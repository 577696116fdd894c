"""Records to tensors: record -> turns -> ids and mask -> batch."""
