//! The servers, each started for one test on a port of its own, with a folder of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const ACCESS: &str = "AKIDEXAMPLETESTKEY00";
pub const SECRET: &str = "wJalrXUtnFEMIsecretSecretK7MDENGexampleKEY";
pub const BUCKET: &str = "packages";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    S3s,
    Moto,
    /// With users and their rights.
    MotoIam,
}

/// A running server; it ends with the value.
pub struct Server {
    pub port: u16,
    pub access: String,
    pub secret: String,
    child: Child,
    _dir: tempfile::TempDir,
}

/// Where `tests/run.sh` puts the servers.
pub fn tools() -> PathBuf {
    let dir = Path::new(env!("CARGO_BIN_EXE_slurm-factory")).parent().unwrap().parent().unwrap().join("test-tools");
    assert!(dir.join("bin/s3s-fs").is_file(), "{}: no S3 servers; tests/run.sh installs them", dir.display());
    assert!(dir.join("moto/bin/moto_server").is_file(), "{}: no moto; tests/run.sh installs it", dir.display());
    dir
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// A server that is started with more arguments, without a bucket but for s3s-fs.
    fn launch(kind: Kind, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = match kind {
            Kind::S3s => {
                // One below: a key with `..` would be written outside of its folder.
                std::fs::create_dir_all(dir.path().join("data").join(BUCKET)).unwrap();
                let mut command = Command::new(tools().join("bin/s3s-fs"));
                command.args(["--host", "127.0.0.1", "--access-key", ACCESS, "--secret-key", SECRET, "--port"]);
                command.arg(port.to_string()).arg(dir.path().join("data"));
                command
            }
            Kind::Moto | Kind::MotoIam => {
                let mut command = Command::new(tools().join("moto/bin/moto_server"));
                command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
        };
        command.args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { port, access: ACCESS.to_owned(), secret: SECRET.to_owned(), child, _dir: dir };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_mins(2), "{kind:?} does not start");
            assert!(server.child.try_wait().unwrap().is_none(), "{kind:?} ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// A server with the bucket in it.
    pub fn start(kind: Kind) -> Self {
        let mut server = Self::launch(kind, &[]);
        let port = server.port;
        match kind {
            Kind::S3s => {}
            Kind::Moto => server.make_bucket(),
            Kind::MotoIam => {
                server.make_bucket();
                let policy = format!(
                    r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::{BUCKET}","arn:aws:s3:::{BUCKET}/*"]}}]}}"#
                );
                let answer = Self::python(&format!(
                    "import boto3\n\
                     iam = boto3.client('iam', endpoint_url='http://127.0.0.1:{port}', region_name='us-east-1',\n\
                         aws_access_key_id='x', aws_secret_access_key='x')\n\
                     iam.create_user(UserName='reader')\n\
                     iam.put_user_policy(UserName='reader', PolicyName='read', PolicyDocument='''{policy}''')\n\
                     key = iam.create_access_key(UserName='reader')['AccessKey']\n\
                     print(key['AccessKeyId'], key['SecretAccessKey'])\n"
                ));
                let (access, secret) = answer.trim().split_once(' ').unwrap();
                (server.access, server.secret) = (access.to_owned(), secret.to_owned());
                // From now on everybody has to have the right to what is asked.
                server.ask("POST", "/moto-api/reset-auth", "0");
            }
        }
        server
    }

    /// moto with TLS, for `localhost`, by a certificate that `authority` signed. Returns that file too.
    pub fn start_tls(dir: &Path) -> (Self, PathBuf) {
        let run = |args: &str| {
            let output = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output();
            let output = output.expect("openssl is missing; these tests need it: apt-get install openssl");
            assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        };
        std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
        run("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
        run("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
        run("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem");
        let server = Self::launch(
            Kind::Moto,
            &["-c", dir.join("server.pem").to_str().unwrap(), "-k", dir.join("server.key").to_str().unwrap()],
        );
        Self::python(&format!(
            "import boto3\nboto3.client('s3', endpoint_url='https://localhost:{}', region_name='us-east-1', verify='{}',\n\
                 aws_access_key_id='x', aws_secret_access_key='x').create_bucket(Bucket='{BUCKET}')",
            server.port,
            dir.join("ca.pem").display()
        ));
        (server, dir.join("ca.pem"))
    }

    fn make_bucket(&self) {
        self.ask("PUT", &format!("/{BUCKET}"), "");
    }

    fn ask(&self, verb: &str, path: &str, body: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!("Host: 127.0.0.1:{}\r\nContent-Length: {}\r\nConnection: close", self.port, body.len());
        write!(stream, "{verb} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Runs a script in moto's Python, which has another client for S3.
    pub fn python(script: &str) -> String {
        let output = Command::new(tools().join("moto/bin/python")).args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with a client named `s3`.
    pub fn boto(&self, script: &str) -> String {
        Self::python(&format!(
            "import boto3\n\
             s3 = boto3.client('s3', endpoint_url='http://127.0.0.1:{}', region_name='us-east-1',\n\
                 aws_access_key_id='{}', aws_secret_access_key='{}')\n{script}",
            self.port, self.access, self.secret
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
