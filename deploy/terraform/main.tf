# The AWS side of a site: a bucket on the Outpost with its access point and endpoint, the role of the instances that are
# targets, and the policies of AWS IoT Core where that is the broker.

data "aws_caller_identity" "own" {}
data "aws_partition" "own" {}
data "aws_region" "own" {}

module "policies" {
  source    = "./policies"
  partition = data.aws_partition.own.partition
  region    = data.aws_region.own.name
  account   = data.aws_caller_identity.own.account_id
  outpost   = var.outpost_id
  bucket    = var.bucket
  prefix    = var.prefix
  site      = var.site
}

resource "aws_s3control_bucket" "store" {
  bucket     = var.bucket
  outpost_id = var.outpost_id
}

# Uploads that a killed target left unfinished take room that nobody sees. Nothing else is removed by rule.
resource "aws_s3control_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3control_bucket.store.arn
  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }
}

resource "aws_s3_access_point" "store" {
  bucket = aws_s3control_bucket.store.arn
  name   = var.bucket
  vpc_configuration {
    vpc_id = var.vpc_id
  }
}

resource "aws_security_group" "endpoint" {
  name        = "drengine-${var.site}-s3"
  description = "S3 on the Outpost, for drengine's targets"
  vpc_id      = var.vpc_id
  ingress {
    description = "HTTPS from the targets"
    from_port   = 443
    to_port     = 443
    protocol    = "tcp"
    cidr_blocks = [var.targets_cidr]
  }
}

resource "aws_s3outposts_endpoint" "store" {
  outpost_id        = var.outpost_id
  security_group_id = aws_security_group.endpoint.id
  subnet_id         = var.subnet_id
}

resource "aws_iam_role" "target" {
  name               = "drengine-${var.site}-target"
  assume_role_policy = module.policies.assumed_by_instances
}

resource "aws_iam_role_policy" "target" {
  name   = "store"
  role   = aws_iam_role.target.id
  policy = module.policies.store
}

resource "aws_iam_instance_profile" "target" {
  name = aws_iam_role.target.name
  role = aws_iam_role.target.name
}

resource "aws_iot_policy" "party" {
  for_each = var.iot ? toset(["agent", "host"]) : toset([])
  name     = "drengine-${var.site}-${each.key}"
  policy   = module.policies.parties[each.key]
}

resource "aws_iot_policy" "orchestrator" {
  count  = var.iot ? 1 : 0
  name   = "drengine-${var.site}-orchestrator"
  policy = module.policies.orchestrator
}
