# The policies as text, by values alone: no provider is needed, so terraform validates and evaluates this folder offline.
# What they allow stands in rights.json, which `make docs` writes from the code that asks for it.

variable "partition" {
  type = string
}

variable "region" {
  type = string
}

variable "account" {
  type = string
}

variable "outpost" {
  type = string
}

variable "bucket" {
  type = string
}

variable "prefix" {
  type = string
}

variable "site" {
  type = string
}

locals {
  rights   = jsondecode(file("${path.module}/rights.json"))
  outposts = "arn:${var.partition}:s3-outposts:${var.region}:${var.account}:outpost/${var.outpost}"
  holders  = ["${local.outposts}/bucket/${var.bucket}", "${local.outposts}/accesspoint/${var.bucket}"]
  iot      = "arn:${var.partition}:iot:${var.region}:${var.account}"
  topics   = "drengine/${var.site}"
  own_name = "$${iot:Certificate.Subject.CommonName}"
}

output "store" {
  description = "What a target does with its objects, and nothing else."
  value = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Objects"
        Effect   = "Allow"
        Action   = [for each in local.rights.object_actions : "s3-outposts:${each}"]
        Resource = [for each in local.holders : "${each}/object/${var.prefix}*"]
      },
      {
        Sid       = "Names"
        Effect    = "Allow"
        Action    = [for each in local.rights.bucket_actions : "s3-outposts:${each}"]
        Resource  = local.holders
        Condition = { StringLike = { "s3-outposts:prefix" = ["${var.prefix}*"] } }
      },
    ]
  })
}

output "assumed_by_instances" {
  description = "Who may take the targets' role."
  value = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

output "parties" {
  description = "What an agent, and a recovery host, may say and hear: its own topics, by its certificate's name."
  value = {
    for role in ["agent", "host"] : role => jsonencode({
      Version = "2012-10-17"
      Statement = [
        {
          Effect   = "Allow"
          Action   = ["iot:Connect"]
          Resource = ["${local.iot}:client/${role}-${local.own_name}-*"]
        },
        {
          Effect   = "Allow"
          Action   = ["iot:Publish"]
          Resource = [for leaf in local.rights.party_says : "${local.iot}:topic/${local.topics}/${role}/${local.own_name}/${leaf}"]
        },
        {
          Effect   = "Allow"
          Action   = ["iot:RetainPublish"]
          Resource = [for leaf in local.rights.party_retains : "${local.iot}:topic/${local.topics}/${role}/${local.own_name}/${leaf}"]
        },
        {
          Effect   = "Allow"
          Action   = ["iot:Subscribe"]
          Resource = [for leaf in local.rights.party_hears : "${local.iot}:topicfilter/${local.topics}/${role}/${local.own_name}/${leaf}"]
        },
        {
          Effect   = "Allow"
          Action   = ["iot:Receive"]
          Resource = [for leaf in local.rights.party_hears : "${local.iot}:topic/${local.topics}/${role}/${local.own_name}/${leaf}"]
        },
      ]
    })
  }
}

output "orchestrator" {
  description = "What an orchestrator may say and hear: commands to all of its site, and what they answer."
  value = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["iot:Connect"]
        Resource = ["${local.iot}:client/orchestrator-*"]
      },
      {
        Effect = "Allow"
        Action = ["iot:Publish"]
        Resource = concat(
          [for role in ["agent", "host"] : "${local.iot}:topic/${local.topics}/${role}/*/command"],
          ["${local.iot}:topic/${local.topics}/orchestrator/*/presence"],
        )
      },
      {
        Effect   = "Allow"
        Action   = ["iot:RetainPublish"]
        Resource = ["${local.iot}:topic/${local.topics}/orchestrator/*/presence"]
      },
      {
        Effect   = "Allow"
        Action   = ["iot:Subscribe"]
        Resource = [for leaf in local.rights.orchestrator_hears : "${local.iot}:topicfilter/${local.topics}/+/+/${leaf}"]
      },
      {
        Effect   = "Allow"
        Action   = ["iot:Receive"]
        Resource = [for leaf in local.rights.orchestrator_hears : "${local.iot}:topic/${local.topics}/*/${leaf}"]
      },
    ]
  })
}
