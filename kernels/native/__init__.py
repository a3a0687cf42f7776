"""OVQ attention in C++ on a CPU: the same steps as `chunked`, a thread for each batch head, no Python between them."""
