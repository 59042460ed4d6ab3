//! The test bed, the end-to-end tests and the benchmarks.
