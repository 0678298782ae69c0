use hob_sdk::{Error, Request, Response};

// What every request needs is made once, at deploy: `#[hob_sdk::init] fn init() { … }` fills a `static`.
#[hob_sdk::function]
fn handle(req: Request) -> Result<Response, Error> {
    Ok(format!("Hello from {}\n", req.path()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_greets() -> Result<(), Error> {
        let request = hob_sdk::http::Request::get("/here").body("")?;
        let response = handle(request.into())?.into_http()?;
        assert_eq!(response.body(), b"Hello from /here\n");
        Ok(())
    }
}
