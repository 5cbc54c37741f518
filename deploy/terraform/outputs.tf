output "place" {
  description = "The store's place, for `drengine store create --storage s3 --place`."
  value       = "s3://${aws_s3_access_point.store.arn}/${trimsuffix(var.prefix, "/")}?region=${data.aws_region.own.name}"
}

output "instance_profile" {
  description = "Of the instances that are targets."
  value       = aws_iam_instance_profile.target.name
}
