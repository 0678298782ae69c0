//! The attribute of `hob-sdk`, `#[hob_sdk::function]`. Use it from there; this package exists because Rust wants macros apart.
//!
//! Owns the shape that a handler must have and the one export around it. What happens with a request is in `hob-sdk`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, Item, Result, ReturnType, Signature};

/// Makes a function the handler of this module: `fn handle(req: Request) -> Result<Response, Error>`.
///
/// The function stays as it is, so tests can call it; beside it comes the export `hob_handle`, which the host calls. A module
/// has one handler. The function takes a `Request`, is neither `async` nor generic, and returns what implements
/// `IntoResponse`.
///
/// The export is an `unsafe` attribute in the eyes of Rust, but it comes from here: it does not trouble a crate with
/// `deny(unsafe_code)` or `forbid(unsafe_code)`.
#[proc_macro_attribute]
pub fn function(attribute: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let item = TokenStream::from(item);
    expand(&attribute.into(), item.clone())
        // The function is kept, so that the only error shown is the one about its shape.
        .unwrap_or_else(|error| [item, error.into_compile_error()].into_iter().collect())
        .into()
}

fn expand(attribute: &TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new_spanned(attribute, "#[hob_sdk::function] takes no arguments"));
    }
    let Item::Fn(function) = syn::parse2(item.clone())? else {
        return Err(Error::new_spanned(item, "#[hob_sdk::function] goes on a function: fn handle(req: Request) -> Response"));
    };
    let argument = check(&function.sig)?;
    let name = &function.sig.ident;
    // The spans make rustc point at the argument or the return type when it is these that do not fit.
    let typed = quote_spanned! { argument.span() => let handler: fn(::hob_sdk::Request) -> _ = #name; };
    let call = quote_spanned! { function.sig.output.span() => ::hob_sdk::__private::run(handler) };
    // Off Wasm the export has no fixed name (it could meet another one in a native program) but still counts as a use.
    Ok(quote! {
        #function

        const _: extern "C" fn() = {
            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            extern "C" fn hob_handle() {
                #typed
                #call
            }
            hob_handle
        };
    })
}

/// The type of the one argument, of a signature that a handler may have.
fn check(signature: &Signature) -> Result<&syn::Type> {
    let refuse = |part: &dyn quote::ToTokens, why: &str| Err(Error::new_spanned(part, why));
    if let Some(part) = &signature.asyncness {
        return refuse(part, "a Hob handler is not async: where it waits for the client, the host runs other functions");
    }
    if let Some(part) = &signature.unsafety {
        return refuse(part, "a Hob handler is not unsafe: nobody checks what it would demand");
    }
    if let Some(part) = &signature.abi {
        return refuse(part, "a Hob handler is an ordinary Rust function, without `extern`");
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return refuse(&signature.generics, "a Hob handler is not generic: the host calls exactly one function");
    }
    if let ReturnType::Default = signature.output {
        return refuse(signature, "a Hob handler returns a response: add `-> Response` or `-> Result<Response, Error>`");
    }
    let mut inputs = signature.inputs.iter();
    match (inputs.next(), inputs.next(), &signature.variadic) {
        (Some(FnArg::Typed(argument)), None, None) => Ok(&argument.ty),
        (Some(FnArg::Receiver(part)), ..) => refuse(part, "a Hob handler is a free function, not a method"),
        (None, ..) => refuse(signature, "a Hob handler takes the request: fn handle(req: Request) -> Response"),
        _ => refuse(&signature.inputs, "a Hob handler takes one argument, the request: fn handle(req: Request) -> Response"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(item: &str, expected: &str) {
        let error = expand(&TokenStream::new(), item.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{item}: {error}");
    }

    #[test]
    fn the_function_is_kept_and_exported() {
        let item: TokenStream = "#[doc = \"x\"] pub(crate) fn greet(req: Request) -> Response { todo() }".parse().unwrap();
        let expanded = expand(&TokenStream::new(), item.clone()).unwrap().to_string();
        assert!(expanded.starts_with(&item.to_string()), "{expanded}");
        for part in ["hob_handle", "unsafe (no_mangle)", "= greet ;", ":: hob_sdk :: __private :: run (handler)"] {
            assert!(expanded.contains(part), "{part} in {expanded}");
        }
    }

    #[test]
    fn patterns_and_other_types_are_left_to_the_compiler() {
        for item in ["fn a(Request { .. }: Request) -> String { x }", "fn a(mut r: hob_sdk::Request) -> impl IntoResponse { x }"]
        {
            expand(&TokenStream::new(), item.parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn wrong_shapes_are_refused_with_a_reason() {
        refused("struct Handler;", "goes on a function");
        refused("fn a(req: Request) -> Response { let }", "expected");
        refused("async fn a(req: Request) -> Response {}", "not async");
        refused("unsafe fn a(req: Request) -> Response {}", "not unsafe");
        refused("extern \"C\" fn a(req: Request) -> Response {}", "without `extern`");
        refused("fn a<T>(req: Request) -> T {}", "not generic");
        refused("fn a<'a>(req: Request) -> &'a str {}", "not generic");
        refused("fn a(req: Request) {}", "returns a response");
        refused("fn a() -> Response {}", "takes the request");
        refused("fn a(req: Request, more: u8) -> Response {}", "takes one argument");
        refused("fn a(&self) -> Response {}", "not a method");
    }

    #[test]
    fn arguments_of_the_attribute_are_refused() {
        let error = expand(&"name = 1".parse().unwrap(), "fn a(req: Request) -> Response {}".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "#[hob_sdk::function] takes no arguments");
    }
}
