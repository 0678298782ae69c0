//! Write Hob functions.
