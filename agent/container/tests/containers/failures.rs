use crate::support::Tests; pub const TESTS: Tests = &[];
