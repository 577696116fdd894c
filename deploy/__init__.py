"""Serving on more than one machine: a Ray Serve application, its configuration, and a container file."""
