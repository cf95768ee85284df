"""How the literature measures learned features: each protocol in a file of its own."""
