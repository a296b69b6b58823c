//! A Kubernetes cluster of one node: a real API server on etcd, scheduler, controller manager, kubelet and containerd.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use super::{Authority, EtcdServer, free_port, missing};

/// How long each part may take until it answers, on a busy machine.
const ANSWERS: Duration = Duration::from_secs(600);

/// The program that has the parts of Kubernetes in it, which `runtimes/kubernetes/tests/cluster` builds.
const PROGRAM: &str = "sas-kubernetes";
/// The name of the node. The API server reaches the kubelet by it.
const NODE: &str = "127.0.0.1";

/// The image of the container that holds a Pod's network.
pub const PAUSE: &str = "sas.test/pause:1";

/// A cluster of one node that a test has started. Dropping it ends everything in it.
pub struct KubernetesCluster {
    dir: tempfile::TempDir,
    program: PathBuf,
    ports: Ports,
    /// The name of the bridge between this machine and the Pods, and of their control groups.
    bridge: String,
    subnet: String,
    admin: Kubectl,
    etcd: EtcdServer,
    server: Option<Child>,
    parts: Vec<Child>,
    node: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    server: u16,
    kubelet: u16,
}

impl fmt::Debug for KubernetesCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesCluster").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// `kubectl` as somebody.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// A call of it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("kubectl").arg("--kubeconfig").arg(&self.kubeconfig);
        // It keeps what the server can do below the home directory otherwise.
        command.arg("--cache-dir").arg(self.kubeconfig.with_extension("cache"));
        command
    }

    /// Its answer as text, to `args` and, where it reads it, `input`.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, args: &[&str], input: &str) -> String {
        use io::Write as _;
        let mut child = self
            .command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was found");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The names of the objects of a kind in a namespace.
    ///
    /// # Panics
    /// When it fails.
    pub fn names(&self, namespace: &str, kind: &str) -> Vec<String> {
        let names = self.run(&["-n", namespace, "get", kind, "-o", "jsonpath={.items[*].metadata.name}"], "");
        names.split_whitespace().map(str::to_owned).collect()
    }
}

/// Where a program is: among those of the user's Go, or in the search path.
fn find(name: &str) -> Option<PathBuf> {
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join("go/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/usr/lib/cni".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

impl KubernetesCluster {
    /// Starts an API server on etcd, the scheduler and the controllers; no node. `None`, and a line on stderr, where the
    /// programs are not there.
    ///
    /// # Panics
    /// Instead, when `CI` is set; and when a part does not come up within ten minutes.
    pub async fn start() -> Option<Self> {
        let Some(program) = find(PROGRAM) else {
            let from = "go build -C runtimes/kubernetes/tests/cluster -o ~/go/bin/sas-kubernetes .";
            return missing("Kubernetes", "the program sas-kubernetes is not there", from);
        };
        let etcd = EtcdServer::start().await?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = Ports { server: free_port(), kubelet: free_port() };
        let bridge = format!("sask{}", ports.server);
        let subnet = format!("10.{}.{}", 128 + ports.server % 64, ports.server / 64 % 256);
        let admin = Kubectl { program: program.clone(), kubeconfig: dir.path().join("admin.conf") };
        let mut cluster = Self {
            dir,
            program,
            ports,
            bridge,
            subnet,
            admin,
            etcd,
            server: None,
            parts: Vec::new(),
            node: None,
        };
        cluster.prepare().expect("the cluster's directory can be written to");
        cluster.start_server().await;
        cluster.start_parts().expect("the program was found");
        Some(cluster)
    }

    /// [`KubernetesCluster::start`], with a node: a kubelet and containerd, in namespaces of their own.
    ///
    /// # Panics
    /// As `start`.
    pub async fn start_with_node() -> Option<Self> {
        for (name, from) in [
            ("containerd", "Debian has it as containerd"),
            ("ctr", "Debian has it as containerd"),
            ("runc", "Debian has it as runc"),
            ("host-local", "Debian has it as containernetworking-plugins"),
            ("unshare", "Debian has it as util-linux"),
        ] {
            if find(name).is_none() {
                return missing("a node of Kubernetes", &format!("{name} is not there"), from);
            }
        }
        if !rustix::process::geteuid().is_root() {
            return missing("a node of Kubernetes", "it wants root", "run the tests as root");
        }
        let mut cluster = Self::start().await?;
        cluster.start_node().await;
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keys, who may come in, and how clients find the server.
    fn prepare(&self) -> io::Result<()> {
        let authority = Authority::new();
        let serving = authority.certify("127.0.0.1");
        let accounts = authority.certify("accounts");
        for (name, text) in [
            ("ca.pem", authority.pem.as_str()),
            ("server.pem", &serving.pem),
            ("server.key", &serving.key),
            ("accounts.key", &accounts.key),
            // Public keys are read from certificates, too.
            ("accounts.pem", &accounts.pem),
            ("tokens.csv", "admin-token,admin,1,\"system:masters\"\n"),
        ] {
            fs::write(self.path(name), text)?;
        }
        fs::write(self.path("admin.conf"), self.kubeconfig("admin-token"))?;
        for part in ["log", "pods", "plugins", "cni", "kubelet", "containerd", "certs"] {
            fs::create_dir_all(self.path(part))?;
        }
        Ok(())
    }

    fn kubeconfig(&self, token: &str) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.ports.server),
                "certificate-authority": self.path("ca.pem")}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        config.to_string()
    }

    /// `kubectl` as who may do everything.
    pub fn admin(&self) -> &Kubectl {
        &self.admin
    }

    /// A file by which clients come in as the service account `account` of `namespace`, which is made where it is not
    /// there.
    ///
    /// # Panics
    /// When the API server gives no token for it.
    pub fn account_kubeconfig(&self, namespace: &str, account: &str) -> PathBuf {
        let _ = self.admin.command().args(["-n", namespace, "create", "serviceaccount", account]).output();
        let made = self
            .admin
            .command()
            .args(["-n", namespace, "create", "token", account, "--duration=6h"])
            .output();
        let made = made.expect("kubectl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let token = String::from_utf8(made.stdout).expect("a token is text");
        let path = self.path(&format!("{namespace}-{account}.conf"));
        fs::write(&path, self.kubeconfig(token.trim())).expect("the cluster's directory can be written to");
        path
    }

    /// The first addresses of the Pods, such as `10.130.7`.
    pub fn subnet(&self) -> &str {
        &self.subnet
    }

    /// Where the API server takes clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.server
    }

    fn part(&self, name: &str) -> Command {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log").join(name));
        let mut command = Command::new(&self.program);
        command.arg(name).stdin(Stdio::null()).stdout(Stdio::null());
        match log {
            Ok(log) => command.stderr(log),
            Err(_) => command.stderr(Stdio::null()),
        };
        command
    }

    fn log_of(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path("log").join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts the API server, again after [`KubernetesCluster::kill_server`], and returns when it answers.
    ///
    /// # Panics
    /// When it does not within ten minutes.
    pub async fn start_server(&mut self) {
        let key = self.path("accounts.key");
        let mut command = self.part("kube-apiserver");
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd.port()))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.ports.server))
            .arg(format!("--tls-cert-file={}", self.path("server.pem").display()))
            .arg(format!("--tls-private-key-file={}", self.path("server.key").display()))
            .arg(format!("--cert-dir={}", self.path("certs").display()))
            .arg(format!("--token-auth-file={}", self.path("tokens.csv").display()))
            .arg(format!("--service-account-key-file={}", self.path("accounts.pem").display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .args(["--service-account-issuer=https://test.invalid", "--api-audiences=https://test.invalid"])
            .args(["--service-cluster-ip-range=10.127.0.0/24", "--endpoint-reconciler-type=none"])
            .args(["--authorization-mode=RBAC", "--kubelet-preferred-address-types=Hostname"])
            .args(["--allow-privileged=true", "--profiling=false", "--v=1"]);
        self.server = Some(command.spawn().expect("the program was found"));
        let began = Instant::now();
        while !self.answers("/readyz") {
            let ended =
                self.server.as_mut().is_none_or(|server| server.try_wait().is_ok_and(|end| end.is_some()));
            let late = began.elapsed() > ANSWERS;
            assert!(!ended && !late, "the API server does not come up:\n{}", self.log_of("kube-apiserver"));
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn answers(&self, path: &str) -> bool {
        let asked = self.admin.command().args(["get", "--raw", path, "--request-timeout=5s"]).output();
        asked.is_ok_and(|asked| asked.status.success())
    }

    /// Kills the API server with SIGKILL.
    pub fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Stops etcd for good or for a while: see [`EtcdServer`].
    pub fn etcd(&mut self) -> &mut EtcdServer {
        &mut self.etcd
    }

    fn start_parts(&mut self) -> io::Result<()> {
        let config = self.admin.kubeconfig.display().to_string();
        let mut scheduler = self.part("kube-scheduler");
        scheduler
            .arg(format!("--kubeconfig={config}"))
            .args(["--leader-elect=false", "--secure-port=0", "--authentication-skip-lookup=true"])
            .arg(format!("--cert-dir={}", self.path("certs").display()));
        let mut controllers = self.part("kube-controller-manager");
        controllers
            .arg(format!("--kubeconfig={config}"))
            .args(["--leader-elect=false", "--secure-port=0", "--authentication-skip-lookup=true"])
            .arg(format!("--cert-dir={}", self.path("certs").display()))
            .arg(format!("--service-account-private-key-file={}", self.path("accounts.key").display()))
            .arg(format!("--root-ca-file={}", self.path("ca.pem").display()))
            .args(["--node-monitor-period=1s", "--node-monitor-grace-period=10s"]);
        self.parts.push(scheduler.spawn()?);
        self.parts.push(controllers.spawn()?);
        Ok(())
    }

    /// Starts containerd and a kubelet, and returns when the node is ready.
    ///
    /// # Panics
    /// When it is not within ten minutes.
    pub async fn start_node(&mut self) {
        self.write_node().expect("the cluster's directory can be written to");
        let log = fs::File::create(self.path("log").join("node"))
            .expect("the cluster's directory can be written to");
        // A process tree of its own, which goes as a whole, and mounts that nobody else sees.
        let node = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
                "--propagation",
                "private",
            ])
            .arg("sh")
            .arg(self.path("node.sh"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn();
        self.node = Some(node.expect("unshare was found"));
        let began = Instant::now();
        while !self.node_is_ready() {
            let ended = self.node.as_mut().is_none_or(|node| node.try_wait().is_ok_and(|end| end.is_some()));
            let late = began.elapsed() > ANSWERS;
            assert!(
                !ended && !late,
                "the node does not come up:\n{}\n{}\n{}",
                self.log_of("node"),
                self.log_of("containerd"),
                self.log_of("kubelet")
            );
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn node_is_ready(&self) -> bool {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints}";
        let asked = self.admin.command().args(["get", "node", NODE, "-o", path]).output();
        asked.is_ok_and(|asked| asked.status.success() && asked.stdout == b"True")
    }

    fn write_node(&self) -> io::Result<()> {
        let dir = self.dir.path().display().to_string();
        let cni =
            find("host-local").and_then(|path| path.parent().map(Path::to_path_buf)).unwrap_or_default();
        let containerd = format!(
            r#"version = 2
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{dir}/cni"
"#,
            cni = cni.display()
        );
        fs::write(self.path("containerd.toml"), containerd)?;
        let network = json!({
            "cniVersion": "0.4.0", "name": self.bridge, "plugins": [
                {"type": "bridge", "bridge": self.bridge, "isGateway": true, "ipMasq": false, "ipam": {
                    "type": "host-local", "dataDir": self.path("ipam"),
                    "ranges": [[{"subnet": format!("{}.0/24", self.subnet)}]],
                    "routes": [{"dst": "0.0.0.0/0"}]}},
            ],
        });
        fs::write(self.path("cni").join("10-test.conflist"), network.to_string())?;
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": "127.0.0.1", "port": self.ports.kubelet, "readOnlyPort": 0, "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
            "cgroupRoot": format!("/{}", self.bridge),
            "containerRuntimeEndpoint": format!("unix://{dir}/containerd.sock"),
            "failSwapOn": false, "makeIPTablesUtilChains": false, "oomScoreAdj": 0,
            "kubeAPIQPS": 500, "kubeAPIBurst": 1000, "nodeStatusUpdateFrequency": "2s",
            "podLogsDir": self.path("pods"), "volumePluginDir": self.path("plugins"),
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": false,
        });
        fs::write(self.path("kubelet.json"), kubelet.to_string())?;
        let script = format!(
            r#"set -e
cd {dir}
# What the parts keep outside of their own directories is gone with their mounts.
for kept in /run/netns /run/containerd /var/lib/cni; do mkdir -p $kept; mount -t tmpfs none $kept; done
containerd --config {dir}/containerd.toml >{dir}/log/containerd 2>&1 &
until ctr -a {dir}/containerd.sock version >/dev/null 2>&1; do sleep 0.2; done
exec {program} kubelet --kubeconfig={dir}/admin.conf --config={dir}/kubelet.json --root-dir={dir}/kubelet \
    --cert-dir={dir}/certs --hostname-override={NODE} --v=1 >{dir}/log/kubelet 2>&1
"#,
            program = self.program.display()
        );
        fs::write(self.path("node.sh"), script)
    }

    /// Gives the node an image of one static program, in `/bin`, which it starts with `args`. It needs one of the name [`PAUSE`], whose
    /// program waits for ever, before it runs any Pod.
    ///
    /// # Panics
    /// When the program can't be read, or the node does not take it.
    pub fn import(&self, image: &str, program: &Path, args: &[&str]) {
        let archive = self.path("image.tar");
        write_image(&archive, image, program, args).expect("the program is there");
        let socket = self.path("containerd.sock");
        let mut ctr = Command::new("ctr");
        let output =
            ctr.arg("-a").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(archive).output();
        let output = output.expect("ctr was found");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes the node off the network's view at once, with all that runs on it.
    pub fn kill_node(&mut self) {
        if let Some(mut node) = self.node.take() {
            // `unshare` takes the whole process tree of the node along.
            if let Some(pid) = i32::try_from(node.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = node.wait();
        }
    }
}

/// Writes an image of one program as `docker save` does.
fn write_image(archive: &Path, image: &str, program: &Path, args: &[&str]) -> io::Result<()> {
    let file = |to: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        to.append_data(&mut header, path, bytes)
    };
    let mut layer = tar::Builder::new(Vec::new());
    let name = program.file_name().map(|name| name.display().to_string()).unwrap_or_default();
    file(&mut layer, &format!("bin/{name}"), 0o755, &fs::read(program)?)?;
    let layer = layer.into_inner()?;
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/bin/{name}");
    let entrypoint: Vec<&str> = [path.as_str()].iter().chain(args).copied().collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["FROM_IMAGE=yes"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]);
    let mut whole = tar::Builder::new(Vec::new());
    file(&mut whole, "config.json", 0o644, config.to_string().as_bytes())?;
    file(&mut whole, "layer.tar", 0o644, &layer)?;
    file(&mut whole, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    fs::write(archive, whole.into_inner()?)
}

impl Drop for KubernetesCluster {
    fn drop(&mut self) {
        self.kill_node();
        for part in &mut self.parts {
            let _ = part.kill();
            let _ = part.wait();
        }
        self.kill_server();
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).stderr(Stdio::null()).status();
        remove_groups(&self.bridge);
    }
}

/// Removes the control groups of a node that is gone, in whatever hierarchies they are.
fn remove_groups(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for top in hierarchies
        .map(|hierarchy| hierarchy.path().join(name))
        .chain([Path::new("/sys/fs/cgroup").join(name)])
    {
        // A directory of these has no files that could be removed, only groups.
        for group in fs::read_dir(&top).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(group.path());
        }
        let _ = fs::remove_dir(&top);
    }
}
