//! A real registry, for what writes to one.

#![allow(dead_code)] // not all of it by every binary that has this file

use slurm_factory::image::ClientConfig;
use slurm_factory::publish::OciStore;
use slurm_factory::report::Ctx;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A registry on a loopback port; it ends with the value.
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    pub port: u16,
}

impl Registry {
    /// `storage` and `http` are added to these parts of the configuration, `more` to the whole.
    pub fn with(storage: &str, http: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}{storage}}}\n{more}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}",
            root.display()
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("docker-registry: {e}; install it: apt-get install docker-registry"));
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, dir, port }
    }

    pub fn start() -> Self {
        Self::with("", "", "")
    }

    pub fn that_deletes() -> Self {
        Self::with(", delete: {enabled: true}", "", "")
    }

    /// Where it keeps a blob.
    pub fn blob(&self, sum: &str) -> PathBuf {
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&sum[..2]).join(sum).join("data")
    }
}

/// The repository `name` by this port: the registry's, or that of a proxy before it.
pub fn store(port: u16, name: &str, retries: u32) -> OciStore {
    let config = ClientConfig { retries, ..ClientConfig::default() };
    OciStore::open(&format!("oci://127.0.0.1:{port}/{name}"), &config, &Ctx::silent()).unwrap()
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
