//! Templates: loaded artifacts with everything resolved, ready to be instantiated.
//!
//! Owns what is looked up once so that no invocation looks it up again. Knows nothing about which function a template is of.

use std::fmt;

use wasmtime::component::InstancePre as ComponentPre;
use wasmtime::error::Context as _;
use wasmtime::{InstancePre, Module, ModuleExport, Result};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as Command03Pre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::artifact::Code;
use super::kind::{Kind, Shape};
use crate::capability::Host;
use crate::capability::handler::ENTRY;

/// A function that can be instantiated now. Dropping it frees its code once the last instance is gone.
pub struct Template {
    pub(super) shape: Shape,
    pub(super) entry: Entry,
    image_bytes: usize,
}

/// Where to call in.
pub(super) enum Entry {
    Handler { pre: InstancePre<Host>, handle: ModuleExport, initialize: Option<ModuleExport> },
    Command { pre: InstancePre<Host>, start: ModuleExport },
    Command02(CommandPre<Host>),
    Command03(Command03Pre<Host>),
    Http02(ProxyPre<Host>),
    Http03(ServicePre<Host>),
}

impl Entry {
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

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({}, {} bytes)", self.shape, self.image_bytes)
    }
}

impl Template {
    /// Resolves loaded code.
    ///
    /// # Errors
    /// When an import is missing or of another type, or the entry is not what the kind promises. The build checks both, so this
    /// means that artifact and daemon do not belong together.
    pub(super) fn new(
        shape: Shape,
        code: Code,
        modules: &wasmtime::Linker<Host>,
        components: &wasmtime::component::Linker<Host>,
    ) -> Result<Self> {
        let image_bytes = code.image_bytes();
        let entry = match code {
            Code::Module(module) => Self::module_entry(shape.kind, &module, modules)?,
            Code::Component(component) => Entry::of_component(shape.kind, components.instantiate_pre(&component)?)?,
        };
        Ok(Self { shape, entry, image_bytes })
    }

    fn module_entry(kind: Kind, module: &Module, linker: &wasmtime::Linker<Host>) -> Result<Entry> {
        let pre = linker.instantiate_pre(module)?;
        let export = |name: &str| module.get_export_index(name).with_context(|| format!("the module exports no '{name}'"));
        match kind {
            Kind::Handler => {
                Ok(Entry::Handler { pre, handle: export(ENTRY)?, initialize: module.get_export_index("_initialize") })
            }
            Kind::Command => Ok(Entry::Command { pre, start: export("_start")? }),
            other => wasmtime::bail!("a {} is no core module", other.as_str()),
        }
    }

    /// What kind of function it is.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of code and memory image that it maps.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.image_bytes
    }
}
