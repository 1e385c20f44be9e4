//! Who is asking.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";

/// `authentication.k8s.io UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    /// A component of the control plane, in process or out of it.
    pub fn component(name: &str) -> Self {
        Self {
            name: name.into(),
            groups: vec![MASTERS.into(), AUTHENTICATED.into()],
            ..Self::default()
        }
    }
}

/// Put into the extensions of an HTTP/1.1 request that names no host (RFC 9112 §3.2): it is refused.
#[derive(Clone, Debug)]
pub struct NoHost;

/// The other end of the connection, put into every request's extensions by the accept loop.
///
/// An in-process client has no connection: it puts a [`User`] into the extensions instead, and is that user.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Whom the verified client certificate names; `None` without one, or without a name in it.
    pub user: Option<Arc<User>>,
}
