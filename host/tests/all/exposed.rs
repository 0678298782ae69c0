//! Starts that would leave a node open, or that make no sense: each ends with a code and a sentence, before anything listens.

use std::path::Path;

use crate::harness::exposed::{BAD_STARTS, serve};

#[test]
fn bad_configurations_end_with_a_code_and_a_sentence() {
    for (args, code, words) in BAD_STARTS {
        let (found, said) = serve(Path::new(env!("CARGO_BIN_EXE_hob")), args);
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{args:?}: '{words}' in {said}");
    }
}
