//! The Kubernetes runtime on a real cluster: API server, etcd, scheduler, controllers, kubelet, containerd. One cluster serves
//! all tests of this program; each has a namespace of its own in it.

mod conformance;
mod deploy;
mod faults;
mod support;
