//! Single objects that pods refer to, read from the API when they are needed.

use std::fmt::Debug;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::de::DeserializeOwned;

#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// `None` when there is no such object.
    ///
    /// # Errors
    /// The API's words.
    pub async fn get<K>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, String>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Scoped,
    {
        K::api(self.client.clone(), namespace.unwrap_or_default())
            .get_opt(name)
            .await
            .map_err(|e| describe(&e))
    }

    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest, String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        api.create_token_request(account, &PostParams::default(), request)
            .await
            .map_err(|e| describe(&e))
    }
}

/// The API's own message where there is one.
pub fn describe(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Which of kube's constructors fits a kind.
pub trait Scoped: Sized + kube::Resource<DynamicType = ()> {
    fn api(client: Client, namespace: &str) -> Api<Self>;
}

macro_rules! scoped {
    ($($kind:ty, $make:expr;)*) => {$(
        impl Scoped for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                let make: fn(Client, &str) -> Api<Self> = $make;
                make(client, namespace)
            }
        }
    )*};
}

scoped! {
    k8s_openapi::api::core::v1::ConfigMap, Api::namespaced;
    k8s_openapi::api::core::v1::Secret, Api::namespaced;
    k8s_openapi::api::core::v1::PersistentVolumeClaim, Api::namespaced;
    k8s_openapi::api::core::v1::PersistentVolume, |client, _| Api::all(client);
}
