//! Where a [`kube::Client`] comes from: the API server's own router in the same process, or a kubeconfig.

use std::path::Path;

use http::{Request, Response};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, Service};

/// A client over the API server's router in this process: no socket and no TLS, the same authentication, authorization
/// and audit path. Who asks is the caller's business: wrap `router` in a layer that puts the identity into the request's
/// extensions.
///
/// # Caveats
/// Calls that upgrade the connection (exec, attach, port-forward) need a real one.
pub fn in_process<S, B>(router: S) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Client::new(router, "default")
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read the kubeconfig {path}")]
    Read {
        path: String,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("the kubeconfig {path} names no usable cluster and user")]
    Load {
        path: String,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("cannot build a client from the kubeconfig {path}")]
    Build {
        path: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// A client over HTTPS as the file's current context says.
///
/// # Errors
/// The file is missing, is not a kubeconfig, or names certificates that cannot be loaded.
pub async fn from_kubeconfig(file: &Path) -> Result<Client, ConnectError> {
    let path = file.display().to_string();
    let kubeconfig = Kubeconfig::read_from(file).map_err(|source| ConnectError::Read {
        path: path.clone(),
        source: Box::new(source),
    })?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| ConnectError::Load {
            path: path.clone(),
            source: Box::new(source),
        })?;
    Client::try_from(config).map_err(|source| ConnectError::Build {
        path,
        source: Box::new(source),
    })
}
