"""EKoyka: beds, stays and discharge certificates of a network of narcology dispensaries."""

__version__ = "0.1.0"
