//! Detection: what kind of function some bytes are, decided by looking at them.
//!
//! Owns the one pass over a binary before it is compiled, and the sentences for what is no function. Runs only in the build
//! process. Invariant: whatever has a [`Surface`] is within every cap, and whatever passes has a kind.

use wasmparser::{CanonicalFunction, ComponentExternalKind, Encoding, ExternalKind, Parser, Payload, TypeRef};

use super::Refused;
use super::caps::{Cap, Counts, LEVELS, MODULES, Malformed};
use super::componentize::{Model, SECTION_STEM};
use crate::capability::handler::{ENTRY, INIT, MODULE, MODULE_STEM, WIZER_INIT};
use crate::engine::{Kind, Lane, Shape};

/// What the pass found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) shape: Shape,
    pub(super) memory_bytes_min: u64,
    /// The export that initialises it.
    pub(super) init: Option<&'static str>,
    /// Whether a core module runs something by itself when it is instantiated.
    pub(super) has_start: bool,
    /// Whether a component makes handles to resources of its own, which are in no memory.
    pub(super) has_resources: bool,
    /// Whether a module within a component has state and no exports, by which it could be read.
    pub(super) has_hidden_state: bool,
}

const HINT_TARGET: &str =
    "write it with hob-sdk, or build a program with a main function for wasm32-wasip1, or a wasi:http component";

/// Looks at the first bytes only; the daemon does so while an upload still streams.
///
/// # Errors
/// [`Refused`] names what the bytes are when they are no Wasm binary.
pub fn check_magic(bytes: &[u8]) -> Result<(), Refused> {
    match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] | [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', ..] => {
            Err(Refused::unfit("this is a Wasm binary of an unknown version", "build it with a current toolchain"))
        }
        [0x7f, b'E', b'L', b'F', ..] => Err(Refused::unfit(
            "this is native code (ELF), or Wasm that was compiled ahead of time; this host compiles for itself and loads nobody else's code",
            "deploy the .wasm file it was made from",
        )),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'P', b'K', ..] => {
            Err(Refused::unfit("this is a compressed file", "unpack it and deploy the .wasm file"))
        }
        [b'(', ..] => Err(Refused::unfit("this is WebAssembly text", "turn it into a binary first, for example with wat2wasm")),
        [] => Err(Refused::unfit("there is nothing here: 0 bytes", "send the .wasm file as the body of the request")),
        _ => Err(Refused::unfit("this is no Wasm binary: it does not begin with '\\0asm'", "send the .wasm file as it is")),
    }
}

/// What to do about a module of proposals that this host does not run.
pub(super) const HINT_PROPOSALS: &str =
    "build it without threads, memory64, GC, exceptions, custom descriptors and custom page sizes, which this host does not run";

/// What a binary looks like from outside.
#[derive(Debug, Default)]
pub(super) struct Surface {
    component: bool,
    /// Whether it is a core module with the type of a component in it.
    typed: bool,
    /// What imports and exports of the outermost level are called.
    imports: Vec<String>,
    exports: Vec<String>,
    /// Functions that a component exports by themselves, outside of any interface.
    functions: Vec<String>,
    has_start: bool,
    has_resources: bool,
    has_hidden_state: bool,
    memory_bytes_min: u64,
}

impl Surface {
    /// Looks at all of a binary, and checks every cap, unless it `is_own`: made by this node of one that was within them.
    ///
    /// # Errors
    /// [`Refused`] when a cap is passed or the bytes are no Wasm.
    pub(super) fn of(bytes: &[u8], is_own: bool) -> Result<Self, Refused> {
        check_magic(bytes)?;
        scan(bytes, is_own).map_err(|stopped| match stopped {
            Malformed::Refused(refused) => refused,
            Malformed::Parse(error) => malformed(&error),
        })
    }

    /// How the binary is to be made a component, if it is a core module that was built to become one. A handler stays what it
    /// is: no component could import its ABI.
    pub(super) fn unfinished(&self) -> Option<Model> {
        match self.typed && !self.component && !self.exports(ENTRY) {
            true if self.exports("_start") => Some(Model::Command),
            true => Some(Model::Reactor),
            false => None,
        }
    }

    /// Kind and lane.
    ///
    /// # Errors
    /// [`Refused`] with what was found, what this host takes, and what to rebuild with.
    pub(super) fn found(&self) -> Result<Found, Refused> {
        let shape = if self.component { component(self)? } else { module(self)? };
        let exports = if self.component { &self.functions } else { &self.exports };
        let has = |name: &str| exports.iter().any(|export| export == name);
        let init = match (shape.kind == Kind::Handler && has(INIT), has(WIZER_INIT)) {
            (true, true) => {
                let detail =
                    format!("the module exports both '{INIT}' and '{WIZER_INIT}', and only one can be its initialisation");
                return Err(Refused::unfit(detail, "keep one of them, and let it call the other"));
            }
            (true, false) => Some(INIT),
            (false, true) => Some(WIZER_INIT),
            (false, false) => None,
        };
        Ok(Found {
            shape,
            memory_bytes_min: self.memory_bytes_min,
            init,
            has_start: self.has_start,
            has_resources: self.has_resources,
            has_hidden_state: self.has_hidden_state,
        })
    }

    fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export == name)
    }
}

/// What `error` means of an upload.
pub(super) fn malformed(error: &wasmparser::BinaryReaderError) -> Refused {
    Refused::unfit(
        format!("the Wasm binary is malformed: {} (at byte {})", error.message(), error.offset()),
        "the file may be damaged or cut short: build it again",
    )
}

fn scan(bytes: &[u8], is_own: bool) -> Result<Surface, Malformed> {
    let mut surface = Surface::default();
    // One set of counts for each module that is open; an outer component has one too, which stays empty.
    let mut open = vec![Counts::new(is_own)];
    let mut modules = 0u64;
    let check = |cap: Cap, count| if is_own { Ok(()) } else { cap.check(count) };
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        let outermost = open.len() == 1;
        match &payload {
            Payload::Version { encoding, .. } => {
                modules += u64::from(*encoding == Encoding::Module);
                check(MODULES, modules)?;
                surface.component |= outermost && *encoding == Encoding::Component;
            }
            Payload::ModuleSection { .. } => open.push(Counts::new(is_own)),
            Payload::ComponentSection { .. } => {
                open.push(Counts::new(is_own));
                check(LEVELS, open.len() as u64)?;
            }
            Payload::End(_) => {
                if let Some(counts) = open.pop() {
                    surface.memory_bytes_min = surface.memory_bytes_min.saturating_add(counts.memory_bytes_min);
                    surface.has_hidden_state |= !open.is_empty() && counts.has_hidden_state();
                }
            }
            Payload::CustomSection(section) if outermost => surface.typed |= section.name().starts_with(SECTION_STEM),
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    let import = import?;
                    check_import(import.ty)?;
                    if outermost {
                        surface.imports.push(import.module.into());
                    }
                }
            }
            Payload::ExportSection(section) if outermost => {
                for export in section.clone() {
                    let export = export?;
                    if matches!(export.kind, ExternalKind::Func | ExternalKind::Memory) {
                        surface.exports.push(export.name.into());
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section.clone() {
                    surface.has_resources |= matches!(function?, CanonicalFunction::ResourceNew { .. });
                }
            }
            Payload::StartSection { .. } if outermost => surface.has_start = true,
            Payload::ComponentImportSection(section) if outermost => {
                for import in section.clone() {
                    surface.imports.push(import?.name.name.into());
                }
            }
            Payload::ComponentExportSection(section) if outermost => {
                for export in section.clone() {
                    let export = export?;
                    match export.kind {
                        ComponentExternalKind::Instance => surface.exports.push(export.name.name.into()),
                        ComponentExternalKind::Func => surface.functions.push(export.name.name.into()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if let Some(counts) = open.last_mut() {
            counts.add(&payload)?;
        }
    }
    Ok(surface)
}

/// Wizer panics at what this engine does not compile; an exact function is valid even where its proposal is off.
fn check_import(ty: TypeRef) -> Result<(), Refused> {
    let what = match ty {
        TypeRef::FuncExact(_) => "a function of an exact type (the proposal custom-descriptors)",
        TypeRef::Tag(_) => "a tag of exceptions",
        _ => return Ok(()),
    };
    Err(Refused::unfit(format!("a module imports {what}, which this host does not run"), HINT_PROPOSALS))
}

fn module(surface: &Surface) -> Result<Shape, Refused> {
    let version = |name: &&String| {
        let digits = name.strip_prefix(MODULE_STEM).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && *name != MODULE
    };
    if let Some(name) = surface.imports.iter().find(version) {
        let detail = format!("the module imports '{name}', another version of Hob's handler ABI; this host offers '{MODULE}'");
        return Err(Refused::unfit(
            detail,
            "rebuild it with the hob-sdk that belongs to this host, or deploy it to a host that offers it",
        ));
    }
    if surface.imports.iter().any(|name| name.starts_with("__wbindgen") || name == "wbg") {
        return Err(Refused::unfit("the module was built with wasm-bindgen, for a JavaScript host", HINT_TARGET));
    }
    let kind = match (surface.exports(ENTRY), surface.exports("_start")) {
        (true, _) if !surface.exports("memory") => {
            return Err(Refused::unfit(
                format!("the module exports '{ENTRY}' but no memory named 'memory'"),
                "export it: guest-sdk/abi.md",
            ));
        }
        (true, _) => Kind::Handler,
        (false, true) => Kind::Command,
        (false, false) => {
            let detail = format!(
                "the core module exports neither '{ENTRY}' nor '_start', so nothing can be called; it exports {}",
                list(&surface.exports)
            );
            return Err(Refused::unfit(detail, HINT_TARGET));
        }
    };
    Ok(Shape { kind, lane: Lane::Plain })
}

fn component(surface: &Surface) -> Result<Shape, Refused> {
    let export = |interface: &str, series: &str| surface.exports.iter().any(|name| is_of(name, interface, series));
    let concurrent =
        surface.imports.iter().chain(&surface.exports).any(|name| name.starts_with("wasi:") && name.contains("@0.3."));
    let kind = if export("wasi:http/handler", "0.3.") {
        Kind::Http03
    } else if export("wasi:http/incoming-handler", "0.2.") {
        Kind::Http02
    } else if export("wasi:cli/run", "0.3.") {
        Kind::Command03
    } else if export("wasi:cli/run", "0.2.") {
        Kind::Command02
    } else {
        return Err(no_entry(surface));
    };
    Ok(Shape { kind, lane: if concurrent { Lane::Concurrent } else { Lane::Plain } })
}

fn no_entry(surface: &Surface) -> Refused {
    let offered = "wasi:http/handler@0.3, wasi:http/incoming-handler@0.2, wasi:cli/run@0.2 and @0.3";
    let near = |stem: &str| surface.exports.iter().find(|name| name.starts_with(stem));
    if let Some(name) = near("wasi:http/").or_else(|| near("wasi:cli/run")) {
        let detail = format!("the component exports '{name}', a version that this host does not call; it calls {offered}");
        return Refused::unfit(detail, "it was built with an early toolchain: rebuild it with a current one");
    }
    if let Some(name) = near("fermyon:spin/") {
        let detail = format!("the component exports '{name}', which only Spin calls; this host calls {offered}");
        return Refused::unfit(detail, "rebuild it with spin-sdk 5 or later, which exports wasi:http");
    }
    let detail = format!(
        "the component exports nothing that this host calls: it calls {offered}; the component exports {}",
        list(&surface.exports)
    );
    Refused::unfit(detail, HINT_TARGET)
}

/// Whether `name` is `interface` in a released version of `series`; release candidates are not.
fn is_of(name: &str, interface: &str, series: &str) -> bool {
    let version = name.strip_prefix(interface).and_then(|rest| rest.strip_prefix('@'));
    version.is_some_and(|version| version.starts_with(series) && !version.contains('-'))
}

/// At most five of `names`, for a sentence.
fn list(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        names => {
            let some: Vec<String> =
                names.iter().take(5).map(|name| format!("'{}'", name.chars().take(80).collect::<String>())).collect();
            let more = names.len().saturating_sub(5);
            format!("{}{}", some.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8]) -> Result<Found, Refused> {
        Surface::of(bytes, false).and_then(|surface| surface.found())
    }

    fn detect_text(text: &str) -> Result<Shape, Refused> {
        found(&wat::parse_str(text).unwrap()).map(|found| found.shape)
    }

    #[test]
    fn what_this_node_made_of_a_module_at_the_caps_is_within_them() {
        let types = "(type (func)) ".repeat(9_999);
        let text =
            format!("(module {types} (memory 1) (func (param i32) (memory.fill (local.get 0) (local.get 0) (local.get 0))))");
        let wasm = wat::parse_str(text).unwrap();
        assert!(Surface::of(&wasm, false).is_ok());
        let rewritten = super::super::bulk::in_parts(wasm).unwrap();
        assert!(Surface::of(&rewritten, false).unwrap_err().detail.contains("10001 types"));
        assert!(Surface::of(&rewritten, true).is_ok());
    }

    #[test]
    fn modules_are_told_by_their_exports() {
        let kind = |text: &str| detect_text(text).unwrap().kind;
        assert_eq!(kind("(module (memory (export \"memory\") 1) (func (export \"hob_handle\")))"), Kind::Handler);
        assert_eq!(kind("(module (func (export \"_start\")))"), Kind::Command);
        for (text, word) in [
            ("(module)", "exports nothing"),
            ("(module (func (export \"run\")))", "'run'"),
            ("(module (func (export \"hob_handle\")))", "no memory"),
            (
                "(module (import \"hob2\" \"respond\" (func)) (memory (export \"memory\") 1) (func (export \"hob_handle\")))",
                "offers 'hob1'",
            ),
            ("(module (import \"wbg\" \"x\" (func)) (func (export \"_start\")))", "wasm-bindgen"),
        ] {
            let refused = detect_text(text).unwrap_err();
            assert!(refused.detail.contains(word) && !refused.over_cap, "{text}: {refused:?}");
        }
    }

    #[test]
    fn components_with_resources_of_their_own_are_known() {
        let has = |function: &str| {
            let text = format!(
                "(component (type $r (resource (rep i32))) {function} (instance $i) (export \"wasi:cli/run@0.2.0\" (instance $i)))"
            );
            found(&wat::parse_str(text).unwrap()).unwrap().has_resources
        };
        assert!(has("(core func $new (canon resource.new $r))") && !has("(core func $drop (canon resource.drop $r))"));
    }

    #[test]
    fn components_are_told_by_their_exports() {
        let with = |name: &str| detect_text(&format!("(component (instance $i) (export \"{name}\" (instance $i)))"));
        assert_eq!(with("wasi:http/incoming-handler@0.2.10").unwrap().kind, Kind::Http02);
        assert_eq!(with("wasi:cli/run@0.2.0").unwrap(), Shape { kind: Kind::Command02, lane: Lane::Plain });
        assert_eq!(with("wasi:http/handler@0.3.0").unwrap(), Shape { kind: Kind::Http03, lane: Lane::Concurrent });
        for (name, word) in [
            ("wasi:http/handler@0.3.0-rc-2026-03-15", "early toolchain"),
            ("wasi:http/incoming-handler@0.1.0", "early toolchain"),
            ("fermyon:spin/inbound-http", "spin-sdk"),
            ("a:b/c", "hob-sdk"),
        ] {
            let refused = with(name).unwrap_err();
            assert!(refused.hint.as_ref().unwrap().contains(word), "{name}: {refused:?}");
        }
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, word) in [
            (&b"\x7fELF\x02"[..], "native code"),
            (b"(module)", "text"),
            (b"\x1f\x8b\x08", "compressed"),
            (b"", "0 bytes"),
            (b"hello", "no Wasm binary"),
            (b"\0asm\x02\0\0\0", "unknown version"),
        ] {
            let refused = found(bytes).unwrap_err();
            assert!(refused.detail.contains(word), "{refused:?}");
        }
    }

    #[test]
    fn modules_that_are_to_become_components_are_told_by_their_section() {
        let model = |text: &str| Surface::of(&wat::parse_str(text).unwrap(), false).unwrap().unfinished();
        let section = "(@custom \"component-type:bindings\" \"\")";
        assert_eq!(model(&format!("(module {section})")), Some(Model::Reactor));
        assert_eq!(model(&format!("(module (func (export \"_start\")) {section})")), Some(Model::Command));
        for text in [
            "(module (func (export \"_start\")))".to_owned(),
            format!("(module (memory (export \"memory\") 1) (func (export \"hob_handle\")) {section})"),
            format!("(component {section})"),
            format!("(component (core module {section}))"),
        ] {
            assert_eq!(model(&text), None, "{text}");
        }
    }

    #[test]
    fn initial_memories_are_summed() {
        let found = found(&wat::parse_str("(module (memory 2) (memory 3) (func (export \"_start\")))").unwrap()).unwrap();
        assert_eq!(found.memory_bytes_min, 5 << 16);
    }

    #[test]
    fn a_memory_that_modules_share_counts_once() {
        let text = "(component
            (core module $has (memory (export \"memory\") 7))
            (core module $uses (import \"has\" \"memory\" (memory 7)) (func (export \"run\") (result i32) i32.const 0))
            (core instance $has (instantiate $has))
            (core instance $uses (instantiate $uses (with \"has\" (instance $has))))
            (func $run (result (result)) (canon lift (core func $uses \"run\")))
            (instance $run (export \"run\" (func $run)))
            (export \"wasi:cli/run@0.2.0\" (instance $run)))";
        assert_eq!(found(&wat::parse_str(text).unwrap()).unwrap().memory_bytes_min, 7 << 16);
    }
}
