//! The attributes of `hob-sdk`. Use them from there; this package exists because Rust wants macros apart.
//!
//! Owns the shape that a function under an attribute must have and the one export around it. What the export does is in `hob-sdk`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
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
    attach(&HANDLER, attribute, item)
}

/// Makes a function the initialisation of this module: `fn init()`, or `fn init() -> Result<(), E>` with an `E` that can be shown.
///
/// It runs once, at deploy, and what it leaves in memory is what every instance begins with, however long it took and however
/// large it is. There is no request and no network. An `Err` is written to the log of the deploy, which then says why there is
/// no snapshot. Under a host that takes none it runs at each start.
///
/// The function stays as it is; beside it comes the export `hob_init`. A module has one.
#[proc_macro_attribute]
pub fn init(attribute: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    attach(&INIT, attribute, item)
}

/// Makes a function run at each start, before the handler: `fn restored()`, or `fn restored() -> Result<(), E>` with an `E` that
/// can be shown.
///
/// It is for what must not be the same in every instance, such as the seed of a generator. The host calls it in the warm-up
/// at deploy too, so an instance may begin with what it left there: it must do its work again, not once. Its time is part of
/// every invocation. An `Err` is written to the function's log and ends the invocation as a trap does.
///
/// The function stays as it is; beside it comes the export `hob_restored`. A module has one.
#[proc_macro_attribute]
pub fn restored(attribute: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    attach(&RESTORED, attribute, item)
}

/// An export that an attribute makes.
struct Entry {
    /// Name of the attribute, and of what the export calls in `hob_sdk::__private`.
    name: &'static str,
    /// Name of the export.
    export: &'static str,
    /// What a function under the attribute is called in errors.
    noun: &'static str,
    /// Its form, for errors.
    form: &'static str,
    /// Why it is not `async`.
    not_async: &'static str,
    /// The arguments it takes, the return type it has.
    call: fn(&Entry, &Signature) -> Result<TokenStream>,
}

const HANDLER: Entry = Entry {
    name: "function",
    export: "hob_handle",
    noun: "a Hob handler",
    form: "fn handle(req: Request) -> Response",
    not_async: "where it waits for the client, the host runs other functions",
    call: call_with_request,
};
const INIT: Entry = Entry {
    name: "init",
    export: "hob_init",
    noun: "an init function",
    form: "fn init()",
    not_async: "it runs alone, before there is any request",
    call: call_without,
};
const RESTORED: Entry = Entry {
    name: "restored",
    export: "hob_restored",
    noun: "a restored function",
    form: "fn restored()",
    not_async: "it runs alone, before the handler sees the request",
    call: call_without,
};

fn attach(entry: &Entry, attribute: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let item = TokenStream::from(item);
    expand(entry, &attribute.into(), item.clone())
        // The function is kept, so that the only error shown is the one about its shape.
        .unwrap_or_else(|error| [item, error.into_compile_error()].into_iter().collect())
        .into()
}

fn expand(entry: &Entry, attribute: &TokenStream, item: TokenStream) -> Result<TokenStream> {
    let Entry { name, form, .. } = entry;
    if !attribute.is_empty() {
        return Err(Error::new_spanned(attribute, format!("#[hob_sdk::{name}] takes no arguments")));
    }
    let Item::Fn(function) = syn::parse2(item.clone())? else {
        return Err(Error::new_spanned(item, format!("#[hob_sdk::{name}] goes on a function: {form}")));
    };
    check(entry, &function.sig)?;
    let call = (entry.call)(entry, &function.sig)?;
    let export = format_ident!("{}", entry.export);
    // Off Wasm the export has no fixed name (it could meet another one in a native program) but still counts as a use.
    Ok(quote! {
        #function

        const _: extern "C" fn() = {
            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            extern "C" fn #export() {
                #call
            }
            #export
        };
    })
}

/// What no function that the host calls may be.
fn check(entry: &Entry, signature: &Signature) -> Result<()> {
    let Entry { noun, not_async, .. } = entry;
    let refuse = |part: &dyn quote::ToTokens, why: String| Err(Error::new_spanned(part, why));
    if let Some(part) = &signature.asyncness {
        return refuse(part, format!("{noun} is not async: {not_async}"));
    }
    if let Some(part) = &signature.unsafety {
        return refuse(part, format!("{noun} is not unsafe: nobody checks what it would demand"));
    }
    if let Some(part) = &signature.abi {
        return refuse(part, format!("{noun} is an ordinary Rust function, without `extern`"));
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return refuse(&signature.generics, format!("{noun} is not generic: the host calls exactly one function"));
    }
    if let Some(FnArg::Receiver(part)) = signature.inputs.first() {
        return refuse(part, format!("{noun} is a free function, not a method"));
    }
    Ok(())
}

/// The call of a function that takes the request and returns a response.
fn call_with_request(entry: &Entry, signature: &Signature) -> Result<TokenStream> {
    let Entry { noun, form, .. } = entry;
    let refuse = |part: &dyn quote::ToTokens, why: String| Err(Error::new_spanned(part, why));
    if let ReturnType::Default = signature.output {
        return refuse(signature, format!("{noun} returns a response: add `-> Response` or `-> Result<Response, Error>`"));
    }
    let mut inputs = signature.inputs.iter();
    let argument = match (inputs.next(), inputs.next(), &signature.variadic) {
        (Some(FnArg::Typed(argument)), None, None) => &argument.ty,
        (None, ..) => return refuse(signature, format!("{noun} takes the request: {form}")),
        _ => return refuse(&signature.inputs, format!("{noun} takes one argument, the request: {form}")),
    };
    let name = &signature.ident;
    // The spans make rustc point at the argument or the return type when it is these that do not fit.
    let typed = quote_spanned! { argument.span() => let handler: fn(::hob_sdk::Request) -> _ = #name; };
    let call = quote_spanned! { signature.output.span() => ::hob_sdk::__private::function(handler) };
    Ok(quote! { #typed #call })
}

/// The call of a function that takes nothing and returns nothing, or a `Result` of nothing.
fn call_without(entry: &Entry, signature: &Signature) -> Result<TokenStream> {
    let Entry { noun, form, .. } = entry;
    if !signature.inputs.is_empty() || signature.variadic.is_some() {
        return Err(Error::new_spanned(&signature.inputs, format!("{noun} takes no arguments, there is no request yet: {form}")));
    }
    let (name, hook) = (&signature.ident, format_ident!("{}", entry.name));
    // The span makes rustc point at the return type when it is that which does not fit.
    Ok(quote_spanned! { signature.output.span() => ::hob_sdk::__private::#hook(#name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(item: &str) -> TokenStream {
        item.parse().unwrap()
    }

    fn refused(entry: &Entry, item: &str, expected: &str) {
        let error = expand(entry, &TokenStream::new(), parse(item)).unwrap_err().to_string();
        assert!(error.contains(expected), "{item}: {error}");
    }

    #[test]
    fn the_function_is_kept_and_exported() {
        let handler = "#[doc = \"x\"] pub(crate) fn greet(req: Request) -> Response { todo() }";
        for (entry, item, parts) in [
            (&HANDLER, handler, ["fn hob_handle", "= greet ;", ":: hob_sdk :: __private :: function (handler)"]),
            (&INIT, "fn load() { }", ["fn hob_init", "hob_init }", ":: hob_sdk :: __private :: init (load)"]),
            (&RESTORED, "fn again() { }", ["fn hob_restored", "hob_restored }", ":: hob_sdk :: __private :: restored (again)"]),
        ] {
            let item = parse(item);
            let expanded = expand(entry, &TokenStream::new(), item.clone()).unwrap().to_string();
            assert!(expanded.starts_with(&item.to_string()), "{expanded}");
            for part in parts.into_iter().chain(["unsafe (no_mangle)"]) {
                assert!(expanded.contains(part), "{part} in {expanded}");
            }
        }
    }

    #[test]
    fn patterns_and_other_types_are_left_to_the_compiler() {
        for item in ["fn a(Request { .. }: Request) -> String { x }", "fn a(mut r: hob_sdk::Request) -> impl IntoResponse { x }"]
        {
            expand(&HANDLER, &TokenStream::new(), parse(item)).unwrap();
        }
        for item in ["fn a() -> Result<(), hob_sdk::Error> { x }", "const fn a() -> impl Outcome {}"] {
            expand(&INIT, &TokenStream::new(), parse(item)).unwrap();
        }
    }

    #[test]
    fn wrong_shapes_are_refused_with_a_reason() {
        for (entry, noun) in [(&HANDLER, "a Hob handler"), (&INIT, "an init function"), (&RESTORED, "a restored function")] {
            refused(entry, "struct Handler;", "goes on a function: fn ");
            refused(entry, "fn a(req: Request) -> Response { let }", "expected");
            refused(entry, "async fn a(req: Request) -> Response {}", &format!("{noun} is not async"));
            refused(entry, "unsafe fn a(req: Request) -> Response {}", &format!("{noun} is not unsafe"));
            refused(entry, "extern \"C\" fn a(req: Request) -> Response {}", "without `extern`");
            refused(entry, "fn a<T>(req: Request) -> T {}", "not generic");
            refused(entry, "fn a<'a>(req: Request) -> &'a str {}", "not generic");
            refused(entry, "fn a(&self) -> Response {}", "not a method");
        }
        refused(&HANDLER, "fn a(req: Request) {}", "returns a response");
        refused(&HANDLER, "fn a() -> Response {}", "takes the request");
        refused(&HANDLER, "fn a(req: Request, more: u8) -> Response {}", "takes one argument");
        refused(&INIT, "fn a(req: Request) {}", "an init function takes no arguments, there is no request yet: fn init()");
        refused(&RESTORED, "fn a(seed: u64) {}", "a restored function takes no arguments");
    }

    #[test]
    fn arguments_of_the_attribute_are_refused() {
        for (entry, item) in [(&HANDLER, "fn a(req: Request) -> Response {}"), (&INIT, "fn a() {}"), (&RESTORED, "fn a() {}")] {
            let error = expand(entry, &parse("name = 1"), parse(item)).unwrap_err();
            assert_eq!(error.to_string(), format!("#[hob_sdk::{}] takes no arguments", entry.name));
        }
    }
}
