//! Puts a kernel, its command line and its firmware tables into guest memory.
