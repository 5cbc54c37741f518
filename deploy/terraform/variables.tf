variable "site" {
  description = "The site's name, as in the certificates of its parties."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{0,62}$", var.site))
    error_message = "A site's name is 1 to 63 of a-z, 0-9, '.', '_' and '-'."
  }
}

variable "outpost_id" {
  description = "The Outpost (op-...) that holds the bucket."
  type        = string
}

variable "vpc_id" {
  description = "The VPC from which alone the bucket is reached."
  type        = string
}

variable "subnet_id" {
  description = "A subnet on the Outpost, for the endpoint of S3."
  type        = string
}

variable "targets_cidr" {
  description = "The network in which the targets are."
  type        = string
}

variable "bucket" {
  description = "The bucket's name, which is also the access point's."
  type        = string
  default     = "drengine"
}

variable "prefix" {
  description = "What the keys of this site's store begin with, as in its place s3://ARN/PREFIX."
  type        = string
  default     = "store/"
  validation {
    condition     = endswith(var.prefix, "/")
    error_message = "A prefix ends with '/'."
  }
}

variable "iot" {
  description = "Whether AWS IoT Core is the broker: its policies are made."
  type        = bool
  default     = false
}
