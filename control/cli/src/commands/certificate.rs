//! `skep certificate`: answers to CertificateSigningRequests.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    output,
    session::{Session, text},
};

/// Approve or deny requests for certificates
#[derive(Subcommand, Clone, Debug)]
pub enum Certificate {
    /// Let the signer issue the certificates: skep certificate approve REQUEST…
    Approve(Requests),
    /// Refuse requests
    Deny(Requests),
}

#[derive(Args, Clone, Debug)]
pub struct Requests {
    #[arg(value_name = "REQUEST", required = true)]
    names: Vec<String>,
    /// Say it again of a request that has this answer already
    #[arg(long)]
    force: bool,
}

impl Certificate {
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Approve(requests) => requests.answer(session, "Approved", "approved").await,
            Self::Deny(requests) => requests.answer(session, "Denied", "denied").await,
        }
    }
}

impl Requests {
    async fn answer(&self, session: &Session, condition: &str, done: &str) -> Result<()> {
        let resource = session
            .resource("certificatesigningrequests.certificates.k8s.io")
            .await?;
        for name in &self.names {
            let path = resource.path("", name);
            let mut request = session.get(&path).await?;
            if set_condition(&mut request, condition, self.force) {
                let path = format!("{path}/approval");
                request = session.replace(&path, &request).await?;
            }
            println!(
                "{} {done}",
                output::qualified_name(&request, Some(&resource))
            );
        }
        Ok(())
    }
}

/// Whether the request has changed.
fn set_condition(request: &mut Value, condition: &str, force: bool) -> bool {
    let mut conditions = request["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let before = conditions.len();
    conditions.retain(|known| text(known, "type") != condition);
    if conditions.len() < before && !force {
        return false;
    }
    conditions.push(json!({
        "type": condition,
        "status": "True",
        "reason": "SkepCertificate",
        "message": format!("This CSR was {} by skep certificate.", condition.to_lowercase()),
        "lastUpdateTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }));
    request["status"]["conditions"] = conditions.into();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_once() {
        let mut request = json!({"metadata": {"name": "r"}});
        assert!(set_condition(&mut request, "Approved", false));
        assert!(!set_condition(&mut request, "Approved", false));
        assert!(set_condition(&mut request, "Approved", true));
        assert_eq!(
            request["status"]["conditions"].as_array().map(Vec::len),
            Some(1)
        );
    }
}
