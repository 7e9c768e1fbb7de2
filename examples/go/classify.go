// Classifies PNG files with grpc-go, from digits.proto alone.
//
//	protoc -I ../../proto -I ../node --go_out=. --go_opt=Mdigitserve/v1/digits.proto=./pb \
//	  --go-grpc_out=. --go-grpc_opt=Mdigitserve/v1/digits.proto=./pb digitserve/v1/digits.proto
//	go mod init digits && go mod tidy
//	go run . --address 127.0.0.1:50051 ../three.png
package main

import (
	"context"
	"flag"
	"fmt"
	"image"
	"image/draw"
	_ "image/png"
	"os"
	"time"

	"google.golang.org/grpc"

	"digits/pb"
)

// grpc-go repeats calls itself: then callers do not notice when a worker is replaced.
const serviceConfig = `{"methodConfig": [{
  "name": [{"service": "digitserve.v1.DigitService", "method": "Classify"}],
  "retryPolicy": {
    "maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "1s", "backoffMultiplier": 4,
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
  }
}]}`

// classify returns the prediction for a file, within 5 seconds.
func classify(client pb.DigitServiceClient, file string) (*pb.Prediction, error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	decoded, _, err := image.Decode(opened)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	size := decoded.Bounds().Size()
	straight := image.NewNRGBA(image.Rectangle{Max: size})
	draw.Draw(straight, straight.Bounds(), decoded, decoded.Bounds().Min, draw.Src)

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := client.Classify(ctx, &pb.ClassifyRequest{
		Pixels: straight.Pix, Height: uint32(size.Y), Width: uint32(size.X),
		PixelFormat: pb.PixelFormat_PIXEL_FORMAT_RGBA8,
	})
	if err != nil {
		return nil, err
	}
	return answer.Predictions[0], nil
}

func main() {
	address := flag.String("address", "127.0.0.1:50051", "HOST:PORT of the service")
	flag.Parse()
	// With TLS: grpc.WithTransportCredentials, with those of credentials.NewClientTLSFromFile("ca.pem", "").
	connection, err := grpc.Dial(*address, grpc.WithInsecure(), grpc.WithDefaultServiceConfig(serviceConfig))
	if err == nil {
		defer connection.Close()
		client := pb.NewDigitServiceClient(connection)
		for _, file := range flag.Args() {
			var prediction *pb.Prediction
			if prediction, err = classify(client, file); err != nil {
				break
			}
			fmt.Printf("%s: %s %.3f %s\n", file, prediction.Label, prediction.Confidence, prediction.Verdict)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "classify:", err)
		os.Exit(1)
	}
}
