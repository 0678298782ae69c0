//! Guest of scenario `serving`: answers a batch of documents with its dirty words blotted out. The list of words is in the snapshot.

use std::sync::OnceLock;

use hob_bench_work::censor::Classifier;
use hob_sdk::{Error, Request, Response};

static CLASSIFIER: OnceLock<Classifier> = OnceLock::new();

#[hob_sdk::init]
fn init() {
    CLASSIFIER.get_or_init(Classifier::load);
}

#[hob_sdk::function]
fn handle(mut req: Request) -> Result<Response, Error> {
    let batch = req.body().read_bytes()?;
    Ok(Response::new(CLASSIFIER.get_or_init(Classifier::load).censor(&batch)))
}
