#![forbid(unsafe_code)]
mod kubeconfig;
mod listen;
mod options;
mod pki;
fn main() {}
