//! How anybody reads a source's topics: by checkpoints.
