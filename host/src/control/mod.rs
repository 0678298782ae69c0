//! The control port: deploy, look, invoke, follow.
//!
//! Owns the routes of `/v1`, their JSON (`wire.rs`) and their description (`/openapi.json`). Knows deploys and [`Invoke`], never the
//! engine. Invariant: every answer that is not 2xx is problem+json with a code of [`crate::fault::Code`], whoever made it.

mod answer;
mod functions;
mod guard;
mod invoke;
mod logs;
mod node;
mod openapi;
mod upload;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::IntoResponse as _;
use http::{Request, Response};
use tokio::sync::Semaphore;
use tower_service::Service as _;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::data::Data;
use crate::deploy::Deployer;
use crate::dispatch::Dispatcher;
use crate::id::TenantId;
use crate::invocation::Invoke;
use crate::net::body::IncomingBody;
use crate::net::drain::Stop;
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
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Ends those who follow a log when the node stops.
    pub stop: Stop,
    /// Places for uploads.
    pub uploads: Arc<Semaphore>,
    /// Where functions are reached, told to whoever deploys one.
    pub data_addr: SocketAddr,
    /// Whose functions: one tenant until there are tokens that say which.
    pub tenant: TenantId,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hob control API",
        description = "Deploy functions and look after them. Errors are application/problem+json (RFC 9457) with a stable `code`."
    ),
    paths(invoke::describe, invoke::describe_bare)
)]
struct Description;

impl Control {
    /// Places for uploads, for a new [`Control`].
    #[must_use]
    pub fn upload_places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(upload::UPLOADS_MAX))
    }

    /// All routes, among them the one that describes them.
    fn router(self) -> Router {
        let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
            .routes(routes!(functions::list))
            .routes(routes!(functions::put, functions::get, functions::delete))
            .routes(routes!(functions::revisions))
            .routes(routes!(functions::rollback))
            .routes(routes!(logs::logs))
            .routes(routes!(node::livez))
            .routes(routes!(node::readyz))
            .routes(routes!(node::metrics))
            .split_for_parts();
        let text = openapi::text(&description);
        router
            .route("/v1/functions/{name}/invoke", axum::routing::any(invoke::invoke))
            .route("/v1/functions/{name}/invoke/", axum::routing::any(invoke::invoke))
            .route("/v1/functions/{name}/invoke/{*path}", axum::routing::any(invoke::invoke))
            .route("/openapi.json", axum::routing::get(move || node::openapi(text.clone())))
            .route("/docs/errors", axum::routing::get(node::errors))
            .fallback(answer::no_route)
            .method_not_allowed_fallback(answer::no_method)
            .layer(DefaultBodyLimit::disable())
            .with_state(self)
    }

    /// The service of the control port, for [`crate::net::serve::serve`].
    pub fn service(self) -> impl Fn(Request<IncomingBody>) -> BoxResponse + Clone + Send + Sync + 'static {
        let metrics = self.metrics.clone();
        let router = self.router();
        move |request| {
            let (mut router, metrics) = (router.clone(), metrics.clone());
            Box::pin(async move {
                let response = match guard::check(request.headers()) {
                    Err(fault) => answer::Refusal::from(fault).into_response(),
                    Ok(()) => match router.call(request.map(axum::body::Body::new)).await {
                        Ok(response) => response,
                        Err(never) => match never {},
                    },
                };
                // Faults of invocations carry no mark: they were counted where they happened.
                if let Some(answer::Refused(code)) = response.extensions().get() {
                    metrics.faulted(*code);
                }
                response
            })
        }
    }
}

/// A response of the control port on its way.
pub type BoxResponse = std::pin::Pin<Box<dyn Future<Output = Response<axum::body::Body>> + Send>>;
