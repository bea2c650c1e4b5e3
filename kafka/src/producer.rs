//! The one writer of a source's topics.
