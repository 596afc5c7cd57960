//! The servers, each started for one test on a port of its own, with a folder of its own.

use slurm_factory::publish::{S3Options, S3Store};
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
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
    #[allow(dead_code)] // not by every binary that has this file
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
        match kind {
            Kind::S3s => {}
            Kind::Moto => server.make_bucket(),
            Kind::MotoIam => {
                server.make_bucket();
                server.restrict(&format!(
                    r#"{{"Effect":"Allow","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::{BUCKET}","arn:aws:s3:::{BUCKET}/*"]}}"#
                ));
            }
        }
        server
    }

    /// From now on moto knows one user alone, whose key this server has then, with the rights of these statements.
    pub fn restrict(&mut self, statements: &str) {
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        let answer = self.admin(&format!(
            "iam = client('iam')\n\
             iam.create_user(UserName='reader')\n\
             iam.put_user_policy(UserName='reader', PolicyName='read', PolicyDocument='''{policy}''')\n\
             key = iam.create_access_key(UserName='reader')['AccessKey']\n\
             print(key['AccessKeyId'], key['SecretAccessKey'])\n"
        ));
        let (access, secret) = answer.trim().split_once(' ').unwrap();
        (self.access, self.secret) = (access.to_owned(), secret.to_owned());
        // From now on everybody has to have the right to what is asked.
        self.ask("POST", "/moto-api/reset-auth", "0");
    }

    /// From now on moto knows one role alone, that may do everything, and this server has the key of a session of it, whose token is
    /// returned.
    #[allow(dead_code)] // as above
    pub fn assume_role(&mut self) -> String {
        let answer = self.admin(
            "iam = client('iam')\n\
             role = iam.create_role(RoleName='ci', AssumeRolePolicyDocument='{}')['Role']\n\
             iam.put_role_policy(RoleName='ci', PolicyName='all', PolicyDocument='''{\"Version\":\"2012-10-17\",\
                 \"Statement\":[{\"Effect\":\"Allow\",\"Action\":\"s3:*\",\"Resource\":\"*\"}]}''')\n\
             got = client('sts').assume_role(RoleArn=role['Arn'], RoleSessionName='test')['Credentials']\n\
             print(got['AccessKeyId'], got['SecretAccessKey'], got['SessionToken'])\n",
        );
        let words: Vec<&str> = answer.split_whitespace().collect();
        let [access, secret, token] = words.as_slice() else { panic!("{answer}") };
        (self.access, self.secret) = ((*access).to_owned(), (*secret).to_owned());
        self.ask("POST", "/moto-api/reset-auth", "0");
        (*token).to_owned()
    }

    /// moto with TLS, for `localhost`, by a certificate that `authority` signed. Returns that file too.
    #[allow(dead_code)] // as above
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
        Self::python(
            &format!("https://localhost:{}", server.port),
            ("x", "x"),
            &format!(", verify='{}'", dir.join("ca.pem").display()),
            &format!("client('s3').create_bucket(Bucket='{BUCKET}')"),
        );
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

    /// Runs a script in moto's Python, whose `client('s3')` is another client of the server at `url`, with `more` arguments.
    fn python(url: &str, (access, secret): (&str, &str), more: &str, script: &str) -> String {
        let script = format!(
            "import boto3\n\
             def client(name):\n    \
                 return boto3.client(name, endpoint_url='{url}', region_name='us-east-1',\n        \
                     aws_access_key_id='{access}', aws_secret_access_key='{secret}'{more})\n\
             {script}"
        );
        let output = Command::new(tools().join("moto/bin/python")).args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// As nobody in particular, who may do everything as long as nobody is known.
    fn admin(&self, script: &str) -> String {
        Self::python(&self.url(), ("x", "x"), "", script)
    }

    /// With this server's key, and a client named `s3`.
    #[allow(dead_code)] // as above
    pub fn boto(&self, script: &str) -> String {
        Self::python(&self.url(), (&self.access, &self.secret), "", &format!("s3 = client('s3')\n{script}"))
    }
}

/// How a server on this port is reached; few and quick tries.
pub fn options(port: u16, server: &Server) -> S3Options {
    S3Options {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".into()),
        credentials: Some((server.access.clone(), Secret::new(server.secret.clone()))),
        part_size: 5 << 20,
        tries: 4,
        first_pause: Duration::from_millis(10),
        timeout: Duration::from_secs(20),
        ..S3Options::default()
    }
}

/// Where `prefix` is in the bucket.
pub fn address(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// The store there.
pub fn store(port: u16, server: &Server, prefix: &str) -> S3Store {
    S3Store::open(&address(prefix), &options(port, server), &Ctx::silent()).unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
