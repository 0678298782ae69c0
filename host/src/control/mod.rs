//! The control port: deploy, look, invoke, follow; buckets and what is in them.
//!
//! Owns the routes of `/v1`, their JSON (`wire.rs`) and their description (`/openapi.json`). Knows deploys and [`Invoke`], never the
//! engine. Invariant: every answer that is not 2xx is problem+json with a code of [`crate::fault::Code`], whoever made it.

mod access;
mod answer;
mod archive;
mod audited;
mod buckets;
mod conditions;
mod feed;
mod functions;
mod guard;
mod in_hand;
mod invoke;
mod keys;
mod kv;
mod logs;
mod node;
mod objects;
mod once;
mod openapi;
mod receive;
mod secrets;
mod tenants;
mod tokens;
mod upload;
mod usage;
pub mod wire;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse as _;
use axum::routing::MethodRouter;
use futures_util::FutureExt as _;
use http::{Request, Response};
use tower_service::Service as _;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::access::FirstStart;
pub use self::buckets::Places;
pub use self::in_hand::InHand;
pub(crate) use self::kv::BATCH_LEN_MAX;
pub use self::node::about;
pub use self::once::Answers;

use self::access::{Access, Peer};
use self::audited::Auditor;
use crate::audit::Audit;
use crate::data::Data;
use crate::deploy::Deployer;
use crate::dispatch::Dispatcher;
use crate::fault::{Code, Fault};
use crate::identity::Identity;
use crate::invocation::Invoke;
use crate::net::body::IncomingBody;
use crate::net::drain::Stop;
use crate::net::panic_text;
use crate::net::turned_away::TurnedAway;
use crate::secrets::Secrets;
use crate::telemetry::metrics::Metrics;

/// What the routes need.
#[derive(Debug, Clone)]
pub struct Control {
    /// Changes what is live.
    pub deployer: Deployer,
    /// Says what is live.
    pub dispatcher: Dispatcher,
    /// Runs functions on the data threads, so that this port answers while they are busy.
    pub invoke: Arc<dyn Invoke>,
    /// The buckets.
    pub data: Arc<Data>,
    /// The secrets.
    pub secrets: Arc<Secrets>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The connections that nobody served, of each port.
    pub turned_away: [(&'static str, Arc<TurnedAway>); 2],
    /// Ends those who follow a log when the node stops.
    pub stop: Stop,
    /// Places for what holds a thread while it lasts.
    pub places: Arc<Places>,
    /// How many requests of tenants there may be at once.
    pub in_hand: Arc<InHand>,
    /// For changes that may be asked for again.
    pub answers: Answers,
    /// Where functions are reached, told to whoever deploys one.
    pub data_addr: SocketAddr,
    /// Which walls stand around the process, in words for an operator.
    pub sandbox: Arc<str>,
    /// Name and version of what runs guests.
    pub engine_version: &'static str,
    /// What was set of `[engine]` and `[build]`.
    pub set: Arc<[(String, String)]>,
    /// Who may do what.
    pub identity: Arc<Identity>,
    /// Who may do everything before there is a token.
    pub first_start: FirstStart,
    /// Where changes are written down.
    pub audit: Arc<Audit>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hob control API",
        description = "Deploy functions and look after them and their data. Errors are application/problem+json (RFC 9457) with a stable `code`."
    ),
    paths(
        invoke::describe,
        invoke::describe_bare,
        kv::get,
        kv::put,
        kv::delete,
        kv::increment,
        objects::head,
        objects::get,
        objects::delete,
        receive::put
    )
)]
struct Description;

impl Control {
    /// All routes, among them the one that describes them.
    fn router(self) -> Router {
        let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
            .routes(routes!(functions::list))
            .routes(routes!(functions::put, functions::get, functions::delete))
            .routes(routes!(functions::revisions))
            .routes(routes!(functions::rollback))
            .routes(routes!(logs::logs))
            .routes(routes!(buckets::list))
            .routes(routes!(buckets::put, buckets::get, buckets::delete))
            .routes(routes!(buckets::scrub))
            .routes(routes!(kv::list, kv::batch))
            .routes(routes!(kv::get_many))
            .routes(routes!(objects::list))
            .routes(routes!(secrets::list))
            .routes(routes!(secrets::put, secrets::delete))
            .routes(routes!(tokens::list, tokens::post))
            .routes(routes!(tokens::delete))
            .routes(routes!(tenants::list))
            .routes(routes!(tenants::get, tenants::put, tenants::patch, tenants::delete))
            .routes(routes!(tenants::key_list))
            .routes(routes!(tenants::key_put, tenants::key_delete))
            .routes(routes!(tenants::audit))
            .routes(routes!(usage::usage))
            .routes(routes!(node::node))
            .routes(routes!(node::livez))
            .routes(routes!(node::readyz))
            .routes(routes!(node::metrics))
            .split_for_parts();
        let description = openapi::complete(&description);
        let (identity, auditor) = (self.identity.clone(), Auditor::new(self.audit.clone()));
        let access = Arc::new(Access::new(&description, identity, self.first_start, auditor, self.in_hand.clone()));
        let text = format!("{description:#}");
        #[cfg(debug_assertions)]
        let router = router.route("/debug/probe/{word}", axum::routing::get(node::probe));
        router
            .route("/v1/functions/{name}/invoke", axum::routing::any(invoke::invoke))
            .route("/v1/functions/{name}/invoke/", axum::routing::any(invoke::invoke))
            .route("/v1/functions/{name}/invoke/{*path}", axum::routing::any(invoke::invoke))
            .route("/v1/buckets/{name}/kv/", entry())
            .route("/v1/buckets/{name}/kv/{*key}", entry())
            .route("/v1/buckets/{name}/objects/", object())
            .route("/v1/buckets/{name}/objects/{*key}", object())
            .route("/openapi.json", axum::routing::get(move || node::openapi(text.clone())))
            .route("/docs/errors", axum::routing::get(node::errors))
            .fallback(answer::no_route)
            .method_not_allowed_fallback(answer::no_method)
            .layer(from_fn_with_state(access, access::check))
            .layer(DefaultBodyLimit::disable())
            .with_state(self)
    }

    /// The service of the control port, for [`crate::net::serve::serve`]. `scheme`: what the port speaks, `http` or `https`.
    pub fn service(self, scheme: &'static str) -> impl Fn(Request<IncomingBody>) -> BoxResponse + Clone + Send + Sync + 'static {
        let (metrics, data, first_start) = (self.metrics.clone(), Arc::clone(&self.data), self.first_start);
        let router = self.router();
        move |mut request: Request<IncomingBody>| {
            let (mut router, metrics, data) = (router.clone(), metrics.clone(), Arc::clone(&data));
            if let Some(peer) = request.body().peer() {
                request.extensions_mut().insert(Peer(peer));
            }
            Box::pin(async move {
                let response = match guard::check(request.headers(), scheme, first_start) {
                    Err(fault) => answer::Refusal::from(fault).into_response(),
                    // Unwind safety: the future is not used again, and what it shares with others is behind locks and atomics that have their own
                    // answer to a panic.
                    Ok(()) => match AssertUnwindSafe(router.call(request.map(axum::body::Body::new))).catch_unwind().await {
                        Ok(Ok(response)) => response,
                        Ok(Err(never)) => match never {},
                        Err(panic) => {
                            metrics.panics.inc();
                            let fault = Fault::internal(format!("panic in a route: {}", panic_text(&*panic)));
                            answer::Refusal::from(fault).into_response()
                        }
                    },
                };
                // Faults of invocations carry no mark: they were counted where they happened.
                if let Some(answer::Refused(code)) = response.extensions().get() {
                    metrics.faulted(*code);
                    if *code == Code::StorageFull {
                        data.make_room();
                    }
                }
                response
            })
        }
    }
}

/// What one entry takes. An empty key reaches it too, to be refused as one.
fn entry() -> MethodRouter<Control> {
    axum::routing::get(kv::get).put(kv::put).delete(kv::delete).post(kv::increment)
}

/// What one object takes.
fn object() -> MethodRouter<Control> {
    axum::routing::get(objects::get).head(objects::head).put(receive::put).delete(objects::delete)
}

/// A response of the control port on its way.
pub type BoxResponse = std::pin::Pin<Box<dyn Future<Output = Response<axum::body::Body>> + Send>>;
