//! Requests of guests to servers elsewhere: the one place that checks a grant of HTTP, whichever interface asks.
//!
//! Owns [`EgressAccess`], what one revision may reach, and the refusal of everything else. Knows nothing about how a request crosses
//! out of a guest (`http.rs`, `handler/outgoing.rs`) and how it is sent (`egress`). Invariant: nothing is sent to a server that the
//! manifest did not name.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Uri;

use super::explain::{Denied, How};
use super::{Environment, Host};
use crate::egress::{Caller, Egress, EgressError, Payer, Pays, Tenant};
use crate::grants::http::{Destination, HttpGrant};
use crate::id::TenantId;
use crate::invocation::Hops;
use crate::meter::FunctionMeter;
use crate::telemetry::logs::LogSink;

/// What one revision of a function may reach over HTTP. The default reaches nothing.
#[derive(Default)]
pub struct EgressAccess {
    tenant: Option<Arc<Tenant>>,
    grants: Vec<HttpGrant>,
    /// Whether it needs no grants: `hob run --net`.
    any: bool,
    sockets: bool,
    /// Counts what is sent.
    meter: Option<Arc<FunctionMeter>>,
    /// Whether something was asked for where there is no network.
    missed: AtomicBool,
}

/// Why a guest's request did not get an answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutboundError {
    /// The manifest does not grant it.
    #[error(transparent)]
    Denied(Denied),
    /// The guest runs where there is no network.
    #[error("there is no network here: a function reaches other servers when it answers a request, not while it is deployed")]
    Absent,
    /// It was tried.
    #[error(transparent)]
    Egress(#[from] EgressError),
}

impl EgressAccess {
    /// What `grants` allow of what the node's client reaches.
    #[must_use]
    pub fn new(egress: &Egress, tenant: &TenantId, grants: &[HttpGrant]) -> Self {
        let sockets = egress.has_sockets(tenant);
        Self { tenant: Some(egress.tenant(tenant)), grants: grants.into(), sockets, ..Self::default() }
    }

    /// The same, with what is sent counted.
    #[must_use]
    pub fn metered(self, meter: &Arc<FunctionMeter>) -> Self {
        Self { meter: Some(meter.clone()), ..self }
    }

    /// Everything, without a grant: for the terminal.
    #[must_use]
    pub fn any(egress: &Egress) -> Self {
        Self { any: true, ..Self::new(egress, &TenantId::default(), &[]) }
    }

    /// Whether a guest may use sockets of WASI, to addresses that [`EgressAccess::admits`].
    #[must_use]
    pub fn has_sockets(&self) -> bool {
        self.sockets && self.tenant.is_some()
    }

    /// Whether a socket may reach this address.
    #[must_use]
    pub fn admits(&self, addr: SocketAddr) -> bool {
        self.tenant.as_ref().is_some_and(|tenant| tenant.egress().walls().admit(addr))
    }

    /// Whether a guest sent a request where there is no network.
    #[must_use]
    pub fn was_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// Who sends a request with this target, if it may be sent.
    fn check(&self, uri: &Uri) -> Result<&Arc<Tenant>, OutboundError> {
        let Some(tenant) = &self.tenant else {
            self.missed.store(true, Ordering::Relaxed);
            return Err(OutboundError::Absent);
        };
        let to = Destination::of(uri).ok_or(EgressError::BadTarget)?;
        match self.any || self.grants.iter().any(|grant| grant.allows(&to)) {
            true => Ok(tenant),
            false => {
                let (what, line) = (format!("request to {to}"), format!("http = [\"{to}\"]"));
                Err(OutboundError::Denied(Denied { what, how: How::Add, line }))
            }
        }
    }
}

impl fmt::Debug for EgressAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.grants).finish()
    }
}

impl Pays for FunctionMeter {
    fn pay(&self, took: Duration) {
        self.used_besides(took);
    }
}

fn payer(environment: &Environment) -> Payer {
    environment.egress.meter.clone().map(|meter| -> Arc<dyn Pays> { meter })
}

/// The requests of one instance. It costs nothing until the first.
#[derive(Debug, Default)]
pub struct Outbound {
    hops: Hops,
    caller: Option<Caller>,
}

impl Outbound {
    /// Those of an instance whose own request came by so many hops.
    #[must_use]
    pub fn new(hops: Hops) -> Self {
        Self { hops, caller: None }
    }

    /// Who sends a request with this target, and for whom. Says in the function's log what would have allowed what is denied.
    ///
    /// # Errors
    /// [`OutboundError`].
    pub(super) fn admit(
        &mut self,
        environment: &Environment,
        log: &LogSink,
        uri: &Uri,
    ) -> Result<(Arc<Tenant>, Caller), OutboundError> {
        let checked = environment.egress.check(uri);
        let tenant = checked.inspect_err(|error| {
            if let OutboundError::Denied(denied) = error {
                environment.explained.tell(denied, log);
            }
        })?;
        if let Some(meter) = &environment.egress.meter {
            meter.requested();
        }
        let caller = self.caller.get_or_insert_with(|| tenant.egress().caller(self.hops, payer(environment)));
        Ok((tenant.clone(), caller.clone()))
    }

    /// Requests that the instance has sent, bytes of their bodies, bytes of the bodies of their responses.
    #[must_use]
    pub fn totals(&self) -> [u64; 3] {
        self.caller.as_ref().map_or([0; 3], |caller| caller.used().totals())
    }
}

impl Host {
    /// Says how many hops the request came by that this instance answers.
    pub fn came_by(&mut self, hops: Hops) {
        self.hooks.outbound = Outbound::new(hops);
    }

    /// Requests that the guest has sent to servers elsewhere, bytes of their bodies, bytes of the bodies of their responses.
    #[must_use]
    pub fn sent(&self) -> [u64; 3] {
        self.hooks.outbound.totals()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::egress::Walls;

    #[test]
    fn only_what_is_granted_is_sent() {
        let egress = Egress::start(&config::Egress::default(), Walls::default()).unwrap();
        let grants = ["https://api.example.com".parse().unwrap()];
        let access = EgressAccess::new(&egress, &TenantId::default(), &grants);
        let check = |access: &EgressAccess, uri: &str| access.check(&uri.parse().unwrap()).map(drop);
        check(&access, "https://api.example.com/a").unwrap();
        let refused = check(&access, "http://api.example.com/a").unwrap_err();
        assert!(refused.to_string().contains("http = [\"http://api.example.com\"]"), "{refused}");
        assert!(matches!(check(&access, "https://u@api.example.com/"), Err(OutboundError::Egress(EgressError::BadTarget))));
        assert!(matches!(check(&access, "/a"), Err(OutboundError::Egress(EgressError::BadTarget))));
        assert!(matches!(check(&EgressAccess::default(), "https://api.example.com/a"), Err(OutboundError::Absent)));
        check(&EgressAccess::any(&egress), "http://127.0.0.1:1/").unwrap();
        assert!(!access.has_sockets() && !EgressAccess::default().has_sockets());
    }

    #[test]
    fn sockets_are_for_tenants_that_the_operator_named() {
        let config = config::Egress { sockets: vec![TenantId::default()], ..config::Egress::default() };
        let egress = Egress::start(&config, Walls::default()).unwrap();
        let access = EgressAccess::new(&egress, &TenantId::default(), &[]);
        assert!(access.has_sockets() && access.admits("8.8.8.8:53".parse().unwrap()));
        assert!(!access.admits("127.0.0.1:53".parse().unwrap()));
        assert!(!EgressAccess::new(&egress, &"other".parse().unwrap(), &[]).has_sockets());
    }
}
