"""An S3 service with one object, that believes signed requests alone. Prints where it is and the key."""
import os, sys, json, urllib.request
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "1000000"
import logging
logging.disable(logging.CRITICAL)
import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
endpoint = f"http://{host}:{port}"
client = lambda service: boto3.client(
    service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
s3, iam = client("s3"), client("iam")
s3.create_bucket(Bucket="apps")
s3.put_object(Bucket="apps", Key="dir/my app.bin", Body=sys.stdin.buffer.readline())
iam.create_user(UserName="quorate")
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="quorate", PolicyName="all", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="quorate")["AccessKey"]
urllib.request.urlopen(urllib.request.Request(endpoint + "/moto-api/reset-auth", data=b"0", method="POST", headers={"content-type": "text/plain"}))
print(json.dumps({"endpoint": endpoint, "id": key["AccessKeyId"], "key": key["SecretAccessKey"]}), flush=True)
sys.stdin.read()
