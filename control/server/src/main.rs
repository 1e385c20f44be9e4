#![forbid(unsafe_code)]
mod kubeconfig;
mod options;
mod listen;
mod pki;
fn main() {}
