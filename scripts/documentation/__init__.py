"""The documentation site: what is generated for its pages, and what is checked of them."""
