"""Documentation: reference pages from the code (``make docs``), and the site (``make site``)."""
