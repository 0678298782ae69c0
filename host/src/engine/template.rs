//! Templates: loaded artifacts with everything resolved, ready to be instantiated.
//!
//! Owns what is looked up once so that no invocation looks it up again. Knows nothing about which function a template is of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::component::InstancePre as ComponentPre;
use wasmtime::error::Context as _;
use wasmtime::{InstancePre, Module, ModuleExport, Result};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as Command03Pre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::artifact::Code;
use super::kind::{Kind, Shape};
use super::large::Large;
use super::ready::Ready;
use crate::capability::Host;
use crate::capability::handler::{ENTRY, INIT, RESTORED, WIZER_INIT};

/// A function that can be instantiated now. Dropping it frees its code once the last instance is gone.
pub struct Template {
    pub(super) shape: Shape,
    pub(super) code: Arc<Resolved>,
    /// Only of a large guest, on a node that has a pool for them.
    pub(super) large: Option<Large>,
    pub(super) ready: Arc<Ready>,
    image_bytes: usize,
    /// See [`Template::leave`].
    has_left: AtomicBool,
}

/// Code with everything resolved, on one engine.
pub(super) struct Resolved {
    pub(super) entry: Entry,
    /// Which of the node's engines.
    pub(super) place: usize,
}

/// Where to call in.
pub(super) enum Entry {
    Handler { pre: InstancePre<Host>, handle: ModuleExport, prelude: Vec<ModuleExport>, restored: Option<ModuleExport> },
    Command { pre: InstancePre<Host>, start: ModuleExport, prelude: Vec<ModuleExport> },
    Command02(CommandPre<Host>),
    Command03(Command03Pre<Host>),
    Http02(ProxyPre<Host>),
    Http03(ServicePre<Host>),
}

impl Entry {
    /// Resolves loaded code.
    ///
    /// # Errors
    /// When an import is missing or of another type, or the entry is not what the kind promises. The build checks both, so this
    /// means that artifact and daemon do not belong together.
    pub(super) fn new(
        kind: Kind,
        code: &Code,
        modules: Option<&wasmtime::Linker<Host>>,
        components: &wasmtime::component::Linker<Host>,
    ) -> Result<Self> {
        match code {
            Code::Module(module) => Self::of_module(kind, module, modules.context("core modules run on the plain lane")?),
            Code::Component(component) => Self::of_component(kind, components.instantiate_pre(component)?),
        }
    }

    fn of_module(kind: Kind, module: &Module, linker: &wasmtime::Linker<Host>) -> Result<Self> {
        let pre = linker.instantiate_pre(module)?;
        let export = |name: &str| module.get_export_index(name).with_context(|| format!("the module exports no '{name}'"));
        // A snapshot took these away when it had run them.
        let prelude = |names: &[&str]| names.iter().filter_map(|name| module.get_export_index(name)).collect();
        match kind {
            Kind::Handler => Ok(Self::Handler {
                pre,
                handle: export(ENTRY)?,
                prelude: prelude(&["_initialize", WIZER_INIT, INIT]),
                restored: module.get_export_index(RESTORED),
            }),
            // What a command has for constructors it runs itself.
            Kind::Command => Ok(Self::Command { pre, start: export("_start")?, prelude: prelude(&[WIZER_INIT]) }),
            other => wasmtime::bail!("a {} is no core module", other.as_str()),
        }
    }

    /// The entry of a component, whose imports are resolved.
    ///
    /// # Errors
    /// When it is not what the kind promises: an interface of the right name without its functions.
    pub(super) fn of_component(kind: Kind, pre: ComponentPre<Host>) -> Result<Self> {
        match kind {
            Kind::Command02 => CommandPre::new(pre).map(Self::Command02),
            Kind::Command03 => Command03Pre::new(pre).map(Self::Command03),
            Kind::Http02 => ProxyPre::new(pre).map(Self::Http02),
            Kind::Http03 => ServicePre::new(pre).map(Self::Http03),
            other => wasmtime::bail!("a {} is no component", other.as_str()),
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // Whoever looks after them holds them longer.
        self.ready.retire();
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({}, {} bytes)", self.shape, self.image_bytes)
    }
}

impl Template {
    /// A template of resolved code that maps `image_bytes`, as often as it may be loaded.
    pub(super) fn new(shape: Shape, code: Resolved, large: Option<Large>, image_bytes: usize) -> Self {
        Self { shape, code: Arc::new(code), large, ready: Arc::default(), image_bytes, has_left: AtomicBool::new(false) }
    }

    /// Says that it is not among those in memory any more, which it is once at most: whoever holds it goes on with it, and puts it nowhere.
    pub fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }

    /// Whether it was among them and is not any more.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// Drops the instances that wait.
    pub fn drop_ready(&self) {
        self.ready.clear();
    }

    /// Drops the instances that wait, and lets no more wait: nobody will ask for this template any more.
    pub fn retire(&self) {
        self.ready.retire();
    }

    /// Instances that wait for an invocation.
    #[must_use]
    pub fn ready_instances(&self) -> usize {
        self.ready.len()
    }

    /// What kind of function it is.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of code and memory image that it maps; twice those of a large guest, which may be loaded into both pools.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.image_bytes
    }
}
