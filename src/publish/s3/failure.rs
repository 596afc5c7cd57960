//! What a request ended with when it did not succeed, and what can be done about it.

use crate::report::chain;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;

/// A request that failed for good.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// Of the answer; nothing when there was none.
    pub status: Option<u16>,
    /// S3's word: `NoSuchBucket`, `AccessDenied`.
    pub code: String,
    message: String,
    /// Where the bucket is, when the server says.
    region: Option<String>,
}

impl Failure {
    /// From the SDK's error.
    #[allow(clippy::needless_pass_by_value)] // for map_err
    pub fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let response = error.raw_response();
        let status = response.map(|r| r.status().as_u16());
        let region = response.and_then(|r| r.headers().get("x-amz-bucket-region")).map(str::to_owned);
        let code = error.code().unwrap_or_default().to_owned();
        let message = match error.message() {
            Some(message) => message.to_owned(),
            None if error.as_service_error().is_some() => String::new(),
            None => chain(&error),
        };
        Self { status, code, message, region }
    }

    /// A failure that is not the server's answer.
    pub fn local(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Nothing is there under the key.
    pub fn not_found(&self) -> bool {
        self.status == Some(404) && self.code != "NoSuchBucket"
    }

    /// These credentials may not see this object, and nothing is said against the credentials. To HEAD there is no code.
    pub fn forbidden(&self) -> bool {
        self.status == Some(403) && matches!(self.code.as_str(), "AccessDenied" | "Forbidden" | "")
    }

    /// What the write depended on was not so. 409 is a race that another writer may have won.
    pub fn conflict(&self) -> bool {
        matches!(self.status, Some(412)) || (self.status == Some(409) && self.code == "ConditionalRequestConflict")
    }

    /// The server does not know what it was asked with this header.
    pub fn unsupported(&self) -> bool {
        matches!(self.status, Some(400 | 501))
            && matches!(
                self.code.as_str(),
                "" | "NotImplemented" | "InvalidArgument" | "InvalidRequest" | "BadRequest" | "UnsupportedArgument"
            )
    }

    /// Cause and remedy.
    pub fn explain(&self, bucket: &str) -> String {
        let said = match (self.code.as_str(), self.message.as_str(), self.status) {
            ("", "", Some(status)) => format!("the server answered {status}"),
            ("", message, Some(status)) => format!("the server answered {status}: {message}"),
            ("", message, None) => message.to_owned(),
            (code, "", _) => code.to_owned(),
            (code, message, _) => format!("{code}: {message}"),
        };
        match self.remedy(bucket) {
            Some(remedy) => format!("{said}; {remedy}"),
            None => said,
        }
    }

    fn remedy(&self, bucket: &str) -> Option<String> {
        let text = match (self.code.as_str(), self.status) {
            ("NoSuchBucket", _) => format!("make the bucket `{bucket}` first, or correct the address"),
            ("InvalidAccessKeyId", _) => "the server does not know this access key; are the credentials for this endpoint?".into(),
            ("SignatureDoesNotMatch", _) => "the secret key is not the one that belongs to the access key".into(),
            ("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired", _) => "log in again for new credentials".into(),
            ("InvalidToken", _) => "the session token does not belong to the access key".into(),
            ("RequestTimeTooSkewed", _) => "set this host's clock".into(),
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) | (_, Some(301)) => {
                match &self.region {
                    Some(region) => format!("the bucket is in region {region}: give it with --s3-region {region}"),
                    None => "give the bucket's region with --s3-region, or its server with --s3-endpoint".into(),
                }
            }
            ("SlowDown" | "ServiceUnavailable" | "InternalError", _) | (_, Some(500 | 502 | 503 | 504)) => {
                "the server went on refusing; run the same again later, what is there is not sent again".into()
            }
            ("AccessDenied" | "AllAccessDisabled", _) | (_, Some(401 | 403)) => format!(
                "these credentials must be allowed s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and \
                 s3:ListMultipartUploadParts on the objects, and s3:ListBucket and s3:ListBucketMultipartUploads on `{bucket}`"
            ),
            (_, None) if self.message.contains("UnknownIssuer") || self.message.contains("certificate") => {
                "name a file with the site's authority in SSL_CERT_FILE".into()
            }
            (_, None) if self.message.contains("dns") || self.message.contains("lookup") => {
                "is the endpoint's name right? A server of your own is reached with path style (the default with --s3-endpoint)".into()
            }
            (_, None) if self.message.contains("connect") || self.message.contains("timeout") || self.message.contains("timed out") => {
                "is the endpoint right, and is it reached from here (https_proxy, http_proxy, no_proxy)?".into()
            }
            _ => return None,
        };
        Some(text)
    }
}
