"""Serving: an HTTP API over one model, whose waiting requests are answered together."""
