//! The HTTP client below everything: TLS by ring, proxy, further authorities, connections that are kept.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A client with proxy and authorities for storage and for tokens.
pub fn http_client(proxy: Option<&str>, ca_pem: &[String]) -> Result<reqwest::Client> {
    // Another part of the program may have installed one already; either is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wrong = |what: &str, error: reqwest::Error| {
        Error::new(ErrorKind::Invalid, what).caused_by(&error.without_url())
    };
    let mut builder = reqwest::Client::builder()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none());
    if let Some(proxy) = proxy.filter(|proxy| !proxy.is_empty()) {
        let proxy = reqwest::Proxy::all(proxy).map_err(|error| {
            wrong(
                "the proxy for storage is no URL: write http://host:port",
                error,
            )
        })?;
        builder = builder.proxy(proxy);
    }
    let mut more = Vec::new();
    for pem in ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|error| wrong("the certificate authorities for storage are no PEM", error))?;
        more.extend(certificates);
    }
    if !more.is_empty() {
        builder = builder.tls_certs_merge(more);
    }
    builder
        .build()
        .map_err(|error| wrong("TLS for storage can't be set up", error))
}
